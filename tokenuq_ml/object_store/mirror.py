"""The local folder that mirrors a store in a bucket: its manifests, and the files that are read.

The bucket is the store; the mirror is a cache that may be deleted whenever nothing runs. An object is never replaced:
a file has the key `<path in the store>/<SHA-256>`, so a manifest and the files that it lists are one version, however
many machines publish. S3 cannot rename, and a copy from a staging key would send everything twice; the object itself is
what is staged, for nothing refers to it before the manifest does.

A file is downloaded when it is first read, hashed on the way, and moved to the path that its manifest gives it. Not
fsspec's `filecache`: it knows no hashes, and names files by their address, so that tables would lose their partitions.
"""

import contextlib
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from tokenuq_ml.file_hashes import sha256_of
from tokenuq_ml.object_store.address import Address
from tokenuq_ml.object_store.bucket import Bucket, ObjectInfo
from tokenuq_ml.object_store.manifest_copies import BOOKS, REFRESH_S, ManifestCopies
from tokenuq_ml.object_store.service_clock import ServiceClock

AT_ONCE = 4
"""Files that are downloaded or uploaded at once."""
LISTING_PAUSES = 10
"""A list of objects is used for so many times as long as it took, so that listing a large bucket is a small part."""
KEEP_UNREFERENCED_S = 24 * 3600.0
"""How long an object stays that no manifest names: a run may be about to publish it."""


class Recorded(Protocol):
    """A file as a manifest records it."""

    @property
    def path(self) -> str:
        """Relative to the store."""

    @property
    def bytes(self) -> int:
        """Its size."""

    @property
    def sha256(self) -> str:
        """Its hash."""


def key_of(file: Recorded) -> str:
    """Return the key of the object that holds a file."""
    return f"{file.path}/{file.sha256}"


class Mirror:
    """A store in a bucket, and the folder that mirrors it.

    Attributes:
        address: of the store.
        home: the folder.
        bucket: the objects.
        manifests: in the bucket and here.
        clock: of the service.
    """

    def __init__(self, address: Address, home: Path):
        self.address, self.home, self.bucket = address, home, Bucket(address)
        self.manifests, self.clock = ManifestCopies(self.bucket, home), ServiceClock(self.bucket)
        self._objects: dict[str, ObjectInfo] = {}
        self._listed_at, self._listing_took = float("-inf"), 0.0
        self._lock = threading.Lock()
        self._incoming = home / BOOKS / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)

    def refresh(self, max_age_s: float = REFRESH_S) -> None:
        """Bring the manifests of the mirror up to date, unless that was done within `max_age_s`.

        Raises:
            StoreAway: the service does not answer.
        """
        self.manifests.refresh(max_age_s)

    def missing(self, files: Iterable[Recorded]) -> str | None:
        """Return which of the files is not in the bucket with its recorded size, in a sentence; None if all are."""
        files = list(files)
        sentence = self._missing(files)
        if sentence is not None:
            # It may have been published since the list was made.
            self._listed_at = float("-inf")
            sentence = self._missing(files)
        return sentence

    def is_local(self, file: Recorded) -> bool:
        """Return whether a file is in the mirror with its recorded size. `fetch` compares its hash."""
        with contextlib.suppress(OSError):
            return (self.home / file.path).stat().st_size == file.bytes
        return False

    def fetch(self, file: Recorded, hash_of: Callable[[Path], str] = sha256_of) -> str | None:
        """Download a file, unless the mirror has it.

        Args:
            file: as its manifest records it.
            hash_of: gives the hash of a local file.

        Returns:
            Why the mirror cannot have it: the object is missing, or is not what the manifest records. None if it has.

        Raises:
            StoreAway: the service does not answer.
        """
        path = self.home / file.path
        if self.is_local(file):
            with contextlib.suppress(OSError):
                if hash_of(path) == file.sha256:
                    return None
        incoming = self._incoming / uuid.uuid4().hex
        try:
            with open(incoming, "xb") as output:
                found = self.content_hash(file, output.write)
            if found is None:
                return f"{self.address}/{key_of(file)} is missing"
            if found != file.sha256:
                return f"{self.address}/{key_of(file)}: its SHA-256 begins with {found[:12]}, not {file.sha256[:12]}"
            _make_room(self.home, path)
            os.replace(incoming, path)
        finally:
            incoming.unlink(missing_ok=True)
        return None

    def fetch_all(self, files: Iterable[Recorded], hash_of: Callable[[Path], str] = sha256_of) -> dict[str, str]:
        """Fetch files, several at once; return path -> why, for those that the mirror cannot have."""
        files = list(files)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(lambda file: self.fetch(file, hash_of), files))
        return {file.path: sentence for file, sentence in zip(files, found, strict=True) if sentence}

    def upload_all(self, files: Iterable[tuple[Recorded, Path]]) -> None:
        """Upload files, several at once. An object that exists is written again only if it may soon be swept."""

        def upload(pair: tuple[Recorded, Path]) -> None:
            file, path = pair
            there = self.bucket.info(key_of(file))
            if there is None or there.bytes != file.bytes or self.clock.age_of(there) > KEEP_UNREFERENCED_S / 4:
                self.bucket.upload(key_of(file), path)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(upload, files))

    def adopt(self, folder: Path, place: str) -> None:
        """Move files that were uploaded to where they are in the mirror, so that they need not be downloaded.

        Args:
            folder: that holds them, on the file system of the mirror.
            place: of the folder in the store.
        """
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            final = self.home / place / path.relative_to(folder)
            _make_room(self.home, final)
            os.replace(path, final)

    def content_hash(self, file: Recorded, sink: Callable[[bytes], object] = len) -> str | None:
        """Read the object of a file and return its SHA-256; None if there is no such object.

        Args:
            file: which.
            sink: takes the content, a part at a time.
        """
        digest = hashlib.sha256()
        info = self.bucket.info(key_of(file))
        if info is None:
            return None
        try:
            for chunk in self.bucket.chunks(key_of(file), info.bytes):
                digest.update(chunk)
                sink(chunk)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; the next look at the list sees that they are gone."""
        self.bucket.delete(list(keys))
        self._listed_at = float("-inf")

    def objects(self) -> dict[str, ObjectInfo]:
        """Return all objects by key; listed again every few seconds, or less often where that takes long."""
        with self._lock:
            began = time.monotonic()
            if began - self._listed_at > max(REFRESH_S, LISTING_PAUSES * self._listing_took):
                self._objects = {info.key: info for info in self.bucket.objects()}
                self._listed_at, self._listing_took = began, time.monotonic() - began
            return self._objects

    def _missing(self, files: Iterable[Recorded]) -> str | None:
        found = self.objects()
        for file in files:
            there = found.get(key_of(file))
            if there is None:
                return f"{self.address}/{key_of(file)} is missing"
            if there.bytes != file.bytes:
                return f"{self.address}/{key_of(file)} has {there.bytes} bytes, not {file.bytes}"
        return None


def _make_room(home: Path, path: Path) -> None:
    """Create the folders of a file, and remove what is in its place or theirs and is of another kind."""
    for part in [*reversed(path.relative_to(home).parents)][1:]:
        folder = home / part
        if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
            folder.unlink()
        folder.mkdir(exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
