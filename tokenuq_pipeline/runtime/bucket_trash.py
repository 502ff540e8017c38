"""The trash of a store in a bucket: manifests that `tokenuq prune` took out, kept for a week.

An asset is deleted by deleting its manifest, a copy of which is put under `.trash/<time>-<id>/`. Its objects stay where
they are until the copy goes, so nothing is copied, and an asset comes back by one put.
"""

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from tokenuq_ml.object_store.manifest_copies import SUFFIX
from tokenuq_ml.object_store.mirror import Mirror
from tokenuq_pipeline.runtime.places import MANIFESTS, is_asset_name
from tokenuq_pipeline.runtime.trash import KEPT_FOR, TIME, TRASH


@dataclass(frozen=True)
class BucketEntry:
    """One asset in the trash."""

    key: str
    asset: str
    put_at: datetime
    etag: str
    manifest: bytes

    @property
    def path(self) -> PurePosixPath:
        """Return the folder of its copy."""
        return PurePosixPath(*PurePosixPath(self.key).parts[:2])

    @property
    def content(self) -> str:
        """Return what it holds, for a listing."""
        return self.asset

    @property
    def files(self) -> list[dict[str, Any]]:
        """Return the files that the manifest lists; nothing of a damaged one."""
        try:
            return list(json.loads(self.manifest)["files"])
        except (ValueError, KeyError, TypeError):
            return []

    @property
    def bytes(self) -> int:
        """Return the size of its files."""
        return sum(int(file.get("bytes", 0)) for file in self.files)

    @property
    def keys(self) -> set[str]:
        """Return the keys of its objects."""
        return {f"{file.get('path')}/{file.get('sha256')}" for file in self.files}


class BucketTrash:
    """The trash of a store in a bucket; its methods are those of `Trash`."""

    def __init__(self, mirror: Mirror):
        self._bucket = mirror.bucket

    def all(self) -> list[BucketEntry]:
        """Return everything that is in it, oldest first."""
        found = (self._entry(info.key) for info in sorted(self._bucket.objects(TRASH), key=lambda info: info.key))
        return [entry for entry in found if entry is not None]

    def put(self, asset: str, manifest: bytes) -> None:
        """Keep the manifest of an asset that is about to be deleted."""
        entry = f"{datetime.now(UTC).strftime(TIME)}-{secrets.token_hex(4)}"
        self._bucket.write(f"{TRASH}/{entry}/{MANIFESTS}/{asset}{SUFFIX}", manifest)

    def delete(self, entry: BucketEntry) -> None:
        """Delete an entry; its objects are swept by the next `prune`."""
        self._bucket.delete([entry.key])

    def empty(self, before: datetime | None = None) -> list[BucketEntry]:
        """Delete entries for good, by default all, and return them."""
        old = [entry for entry in self.all() if before is None or entry.put_at < before]
        for entry in old:
            self.delete(entry)
        return old

    def empty_old(self) -> list[BucketEntry]:
        """Delete what has been in the trash for longer than a week, and return it."""
        return self.empty(datetime.now(UTC) - KEPT_FOR)

    @property
    def bytes(self) -> int:
        """Return the size of everything that it holds."""
        return sum(entry.bytes for entry in self.all())

    def _entry(self, key: str) -> BucketEntry | None:
        parts = key.split("/")
        asset = "/".join(parts[3:]).removesuffix(SUFFIX)
        if len(parts) < 4 or parts[2] != MANIFESTS or not is_asset_name(asset):
            return None
        found = self._bucket.read(key)
        try:
            put_at = datetime.strptime(parts[1].rpartition("-")[0], TIME).replace(tzinfo=UTC)
        except ValueError:
            return None
        return BucketEntry(key, asset, min(put_at, found[1].modified), found[1].etag, found[0]) if found else None
