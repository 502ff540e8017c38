"""The manifests of a store in a bucket, and their copies in the mirror.

All processes of a machine share the mirror. Each brings the copies up to date under a lock, so that a list that was
asked for later is never overtaken by an earlier one.
"""

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.object_store.bucket import Bucket

MANIFESTS, SUFFIX = ".manifests", ".json"
BOOKS = ".mirror"
"""Folder of the mirror's own files: which manifests it has, and downloads under way."""
REFRESH_S = 2.0
"""How old the list of manifests may be."""
AT_ONCE = 8
"""Manifests that are read at once."""

State = dict[str, list[object]]
"""Asset -> ETag of its manifest, size and time of the copy."""


class ManifestCopies:
    """The manifests in the bucket, and those in the mirror.

    Args:
        bucket: of the store.
        home: the mirror.
    """

    def __init__(self, bucket: Bucket, home: Path):
        self._bucket, self._home = bucket, home
        self._listed_at = float("-inf")
        self._lock = threading.RLock()
        for folder in (MANIFESTS, BOOKS):
            (home / folder).mkdir(parents=True, exist_ok=True)

    def refresh(self, max_age_s: float = REFRESH_S) -> None:
        """Bring the copies up to date, unless that was done within `max_age_s`.

        Raises:
            StoreAway: the service does not answer.
            InputError: there is no such bucket, or no access to it.
        """
        with self._lock:
            if time.monotonic() - self._listed_at < max_age_s:
                return
            with self._locked():
                began = time.monotonic()
                self._refresh()
                self._listed_at = began

    def etags(self) -> dict[str, str]:
        """Return asset -> ETag, for the manifests that the mirror has."""
        return {asset: str(known[0]) for asset, known in self._read_state().items()}

    def put(self, asset: str, content: bytes, replaces: str | None) -> bool:
        """Write the manifest of an asset, which makes it complete, if nobody else has written one meanwhile.

        Args:
            asset: its name.
            content: of the manifest.
            replaces: the ETag of the manifest that is replaced; None: there must be none.

        Returns:
            Whether it was written.
        """
        etag = self._bucket.write_if(key_of(asset), content, replaces)
        if etag is None:
            return False
        with self._lock, self._locked():
            state = self._read_state()
            self._write_copy(asset, content, etag, state)
            self._write_state(state)
        return True

    def delete(self, asset: str) -> None:
        """Delete the manifest of an asset, and its copy."""
        self._bucket.delete([key_of(asset)])
        self.refresh(0)

    def _refresh(self) -> None:
        listed = {
            info.key.removeprefix(f"{MANIFESTS}/").removesuffix(SUFFIX): info.etag
            for info in self._bucket.objects(MANIFESTS)
            if info.key.endswith(SUFFIX)
        }
        before = self._read_state()
        state = {asset: known for asset, known in before.items() if asset in listed}
        changed = [asset for asset, etag in listed.items() if not self._has(asset, etag, state)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            contents = list(pool.map(lambda asset: self._bucket.read(key_of(asset)), changed))
        for asset, found in zip(changed, contents, strict=True):
            state.pop(asset, None)
            if found is not None:
                self._write_copy(asset, found[0], found[1].etag, state)
        self._forget_others(state)
        if state != before:
            self._write_state(state)

    def _has(self, asset: str, etag: str, state: State) -> bool:
        """Return whether the mirror has this manifest, as it was written here."""
        with contextlib.suppress(OSError):
            return state.get(asset) == [etag, *_stamp(self._copy(asset))]
        return False

    def _write_copy(self, asset: str, content: bytes, etag: str, state: State) -> None:
        path = self._copy(asset)
        before = _paths_in(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=False) as file:
            file.write(content)
        state[asset] = [etag, *_stamp(path)]
        # The reader of a table takes every part in its folder: what the asset no longer has must not stay.
        for relative in before - _paths_in(path):
            with contextlib.suppress(OSError):
                (self._home / relative).unlink()

    def _forget_others(self, state: State) -> None:
        root = self._home / MANIFESTS
        for path in root.rglob(f"*{SUFFIX}"):
            if path.relative_to(root).as_posix().removesuffix(SUFFIX) not in state:
                path.unlink(missing_ok=True)

    def _copy(self, asset: str) -> Path:
        return self._home / key_of(asset)

    def _read_state(self) -> State:
        try:
            return dict(json.loads((self._home / BOOKS / "manifests.json").read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def _write_state(self, state: State) -> None:
        with atomic_write(self._home / BOOKS / "manifests.json", durable=False) as file:
            file.write(json.dumps(state).encode())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._home / BOOKS / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            # On a file system without locks, a copy may be that of a moment ago; the next refresh replaces it.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def key_of(asset: str) -> str:
    """Return the key of an asset's manifest."""
    return f"{MANIFESTS}/{asset}{SUFFIX}"


def _stamp(path: Path) -> list[int]:
    status = os.lstat(path)
    return [status.st_size, status.st_mtime_ns]


def _paths_in(manifest: Path) -> set[str]:
    """Return the files that a manifest lists, as far as they are in the store; nothing of a damaged one."""
    try:
        paths = [file["path"] for file in json.loads(manifest.read_bytes())["files"]]
        return {path for path in paths if not (path.startswith(("/", ".")) or ".." in Path(path).parts)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
