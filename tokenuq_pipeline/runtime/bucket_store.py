"""A store in a bucket: the same assets, published by one conditional put of their manifest.

Files are uploaded while they are settled, before any lock; nothing refers to them yet. The manifest is then put in
place of the one that was seen before, which fails if another machine has published meanwhile. A crash at any moment
leaves the old version or the new one, so there is no journal. Stages read and write the folder that mirrors the bucket
(`tokenuq_ml/object_store/mirror.py`).
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from tokenuq_ml.atomic_files import replace_folder
from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store.bucket import StoreAway
from tokenuq_ml.object_store.manifest_copies import key_of
from tokenuq_ml.object_store.mirror import Mirror
from tokenuq_ml.object_store.mirror import key_of as key_of_file
from tokenuq_ml.object_store.registry import bucket_mirror
from tokenuq_ml.tables.integrity import REPAIR, damages
from tokenuq_ml.tables.partitions import store_home
from tokenuq_pipeline.runtime.bucket_jobs import uploaded
from tokenuq_pipeline.runtime.journal import Outcome
from tokenuq_pipeline.runtime.leases import LeaseLost
from tokenuq_pipeline.runtime.manifest import FileEntry, Manifest
from tokenuq_pipeline.runtime.places import check_asset_name
from tokenuq_pipeline.runtime.store import Store


def open_store(home: str | Path | None = None) -> Store:
    """Return the store in a folder, or the one at an address `s3://bucket/prefix`; default: `$TOKENUQ_HOME`.

    Raises:
        InputError: the bucket cannot be read.
    """
    folder = store_home(home)
    mirror = bucket_mirror(folder)
    return Store(folder) if mirror is None else BucketStore(mirror)


def address_of(store: Store) -> str:
    """Return where the results of a store are, for messages: a folder, or the address of a bucket."""
    return str(store.mirror.address if isinstance(store, BucketStore) else store.home)


def fetch(store: Store, asset: str, is_read: Callable[[str], bool]) -> None:
    """Bring files of an asset to this machine, compared with their hashes; does nothing for a store in a folder.

    Args:
        store: the store.
        asset: its name.
        is_read: a path in the store -> whether it is needed.

    Raises:
        InputError: an object is missing or damaged.
        StoreAway: the service does not answer.
    """
    if isinstance(store, BucketStore):
        store.fetch(asset, is_read)


def model_folder(store: Store, name: str) -> Path:
    """Return the folder of a model, with all of its files but the weights; empty or missing if it is not made."""
    fetch(store, f"models/{name}", lambda path: not path.endswith(".safetensors"))
    return store.path(f"models/{name}")


def look_again(store: Store) -> None:
    """See what other machines have published until now; does nothing for a store in a folder."""
    if isinstance(store, BucketStore):
        store.mirror.refresh(0)


def damaged_files(store: Store, manifest: Manifest) -> list[str]:
    """Return what is wrong with the files of an asset, and what repairs it.

    Files in a folder are compared with their hashes. Objects are looked for in the bucket's list, and compared when
    they are fetched: to read all of them would download the store.
    """
    if not isinstance(store, BucketStore):
        return list(damages(store.home, [store.path(file.path) for file in manifest.files]).values())
    missing = store.mirror.missing(manifest.files)
    return [] if missing is None else [f"{missing}; {REPAIR}"]


def copy_assets(source: Store, target: "BucketStore") -> list[str]:
    """Copy what is complete in a store in a folder, and not in the bucket, into the bucket; return the assets.

    Every file is compared with its hash first. An asset that is damaged, or of which another machine publishes a
    version meanwhile, is left out.
    """
    copied, there = [], set(target.assets())
    for asset in source.assets():
        manifest = source.read_manifest(asset)
        if manifest is None or asset in there or source.problems(asset):
            continue
        target.mirror.upload_all((file, source.path(file.path)) for file in manifest.files)
        if target.mirror.manifests.put(asset, manifest.content(), None):
            copied.append(asset)
    return copied


class BucketStore(Store):
    """A store in a bucket. Its paths are those of the mirror."""

    def __init__(self, mirror: Mirror):
        super().__init__(mirror.home)
        self.mirror = mirror
        self._seen: dict[str, str] = {}

    def settle(self, staged: Mapping[str, Path], outputs: Mapping[str, str]) -> list[FileEntry]:
        """Upload the files of staged folders, and return them as the manifest will list them.

        A job on a cluster has uploaded its own.

        Raises:
            StoreAway: what a job has uploaded is not in the bucket.
        """
        there = {name: files for name, folder in staged.items() if (files := uploaded(folder)) is not None}
        here = {name: folder for name, folder in staged.items() if name not in there}
        entries = super().settle(here, {name: outputs[name] for name in outputs if name in here})
        folders = {outputs[name]: folder for name, folder in here.items()}
        self.mirror.upload_all((entry, _staged_path(entry.path, folders)) for entry in entries)
        entries += [FileEntry(**file.model_dump()) for files in there.values() for file in files]
        if there and (missing := self.mirror.missing(entries)):
            raise StoreAway(f"{missing}, although a job has uploaded it")
        self.mirror.refresh(0)
        # Noted before the lease is confirmed: who loses it later finds another manifest than this one.
        self._seen = self.mirror.manifests.etags()
        return entries

    def publish(self, manifest: Manifest, staged: Mapping[str, Path]) -> None:
        """Replace an asset, or publish its first version. The caller holds its lease, and has settled the folders.

        Raises:
            LeaseLost: another machine has published the asset since the folders were settled.
            StoreAway: the service does not answer; the old version stays.
        """
        if not self.mirror.manifests.put(manifest.asset, manifest.content(), self._seen.get(manifest.asset)):
            raise LeaseLost(
                f"{manifest.asset}: another run has published it, or it was deleted, since this run has looked; what "
                "this run made is not published"
            )
        for name, place in manifest.outputs.items():
            if uploaded(staged[name]) is not None:
                continue
            final = self.path(place)
            final.parent.mkdir(parents=True, exist_ok=True)
            replace_folder(staged[name], final)

    def recover(self, held: Collection[str] = ()) -> dict[str, Outcome]:
        """Return nothing: a publication is one step."""
        return {}

    def read_manifest(self, asset: str) -> Manifest | None:
        """Return the manifest of `asset`; None if there is none or it is damaged."""
        self.mirror.refresh()
        return super().read_manifest(asset)

    def damaged_manifest(self, asset: str) -> str | None:
        """Return how the manifest of `asset` is damaged, and what repairs it; None if it is not, or there is none."""
        self.mirror.refresh()
        return super().damaged_manifest(asset)

    def manifest_age(self, asset: str) -> float | None:
        """Return the seconds since the manifest of `asset` was written, by the service; None without one."""
        info = self.mirror.bucket.info(key_of(check_asset_name(asset)))
        return None if info is None else self.mirror.clock.age_of(info)

    def incomplete_because(self, asset: str) -> str | None:
        """Return why `asset` is not complete: no manifest, a damaged one, or an object that is missing or cut short."""
        self.mirror.refresh()
        if (damage := super().damaged_manifest(asset)) is not None:
            return f"has a damaged manifest, {damage}"
        manifest = super().read_manifest(asset)
        return "has no manifest" if manifest is None else self.mirror.missing(manifest.files)

    def problems(self, asset: str) -> list[str]:
        """Read every object of `asset` in the bucket, and return how they differ from what the manifest recorded."""
        if (damage := self.damaged_manifest(asset)) is not None:
            return [f"has no readable manifest: {damage}"]
        manifest = super().read_manifest(asset)
        if manifest is None:
            return ["has no manifest"]
        found = ((file, self.mirror.content_hash(file)) for file in manifest.files)
        return [
            f"{file.path}: "
            + (f"its SHA-256 begins with {digest[:12]}, not {file.sha256[:12]}" if digest else "is missing")
            for file, digest in found
            if digest != file.sha256
        ]

    def extra_files(self, asset: str) -> list[Path]:
        """Return nothing: an object that no manifest names is not seen by readers, and `prune` deletes it."""
        return []

    def forget(self, asset: str) -> None:
        """Delete the manifest of `asset`, which is incomplete until the next one is written, and its objects.

        A damaged object has the key that the right one will have, and would not be uploaded again.
        """
        manifest = self.read_manifest(asset)
        self.mirror.manifests.delete(check_asset_name(asset))
        if manifest is not None:
            self.mirror.delete(key_of_file(file) for file in manifest.files)

    def fetch(self, asset: str, is_read: Callable[[str], bool]) -> None:
        """Download files of an asset, and compare them with their hashes, unless they are here; see `fetch`."""
        manifest = self.read_manifest(asset)
        wrong = self.mirror.fetch_all(file for file in manifest.files if is_read(file.path)) if manifest else {}
        for sentence in wrong.values():
            raise InputError(f"{asset}: {sentence}; {REPAIR}")


def _staged_path(path: str, folders: Mapping[str, Path]) -> Path:
    """Return where a file is staged that will be at `path` in the store."""
    place = next(place for place in folders if path.startswith(f"{place}/"))
    return folders[place] / path.removeprefix(f"{place}/")
