"""`tokenuq prune` on a store in a bucket: assets that no configuration refers to, and objects that no manifest names.

The functions are those of `pruning.py` and `restoring.py`. An asset is deleted under its lease, so no run is about to
publish it. Objects that no manifest names are left over from earlier versions and from runs that ended before they
published; they are deleted once they are a day old, for a run uploads before it publishes.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from tokenuq_ml.object_store.address import CHECKPOINTS
from tokenuq_ml.object_store.manifest_copies import key_of
from tokenuq_ml.object_store.mirror import KEEP_UNREFERENCED_S
from tokenuq_ml.object_store.mirror import key_of as key_of_file
from tokenuq_pipeline.runtime.bucket_store import BucketStore
from tokenuq_pipeline.runtime.bucket_trash import BucketEntry, BucketTrash
from tokenuq_pipeline.runtime.places import is_asset_name
from tokenuq_pipeline.runtime.pruning import (
    NotRemovable,
    Removable,
    checkpoints,
    is_resumed,
    reason_of,
    run_at_work,
)
from tokenuq_pipeline.runtime.pruning import remove as remove_files
from tokenuq_pipeline.runtime.restoring import NotRestorable
from tokenuq_pipeline.runtime.store_layout import places_of, worker_of

LEFT_OVER = "objects that no manifest names"
_OBJECT = re.compile(r"[^.][^/]*/(.+/)?[0-9a-f]{64}")


@dataclass(frozen=True)
class BucketRemovable:
    """Something that can be deleted from a bucket: an asset, checkpoints, or the objects that no manifest names."""

    name: str
    reason: str
    kept_because: str | None
    sizes: dict[str, int]
    """Folder -> size of its objects."""
    etag: str = ""
    """ETag of the manifest, when it was listed."""
    keys: tuple[str, ...] = field(default=(), repr=False)

    @property
    def asset(self) -> str:
        """Return the asset that it belongs to."""
        return self.name.removeprefix(f"{CHECKPOINTS}/")

    @property
    def bytes(self) -> int:
        """Return the size of its objects."""
        return sum(self.sizes.values())


def removable(
    store: BucketStore, configured: Mapping[str, str], study: str | None = None
) -> list[BucketRemovable | Removable]:
    """List assets that no configuration refers to, checkpoints on this machine, and objects that no manifest names."""
    found: list[BucketRemovable | Removable] = [*_assets(store, configured), *checkpoints(store, configured)]
    found += _checkpoints(store, configured)
    if study is not None:
        return [item for item in found if item.asset.startswith(f"{study}/")]
    return [*found, *_left_over(store)]


def remove(store: BucketStore, item: BucketRemovable | Removable, now: bool = False) -> None:
    """Delete an item; of an asset, the manifest goes to the trash, and its objects stay until the trash is emptied.

    Raises:
        NotRemovable: a run works on it, or it has changed since it was listed.
    """
    if isinstance(item, Removable):
        remove_files(store, item, now)
    elif item.name.startswith(CHECKPOINTS):
        if because := item.kept_because or run_at_work(store, item.asset):
            raise NotRemovable(f"{item.name}: {because}")
        store.mirror.delete(item.keys)
    elif item.name == LEFT_OVER:
        # A run may have published some of them since they were listed.
        store.mirror.refresh(0)
        named = _named(store)
        store.mirror.delete(key for key in item.keys if key not in named)
    else:
        _remove_asset(store, item, now)


def restorable(store: BucketStore, name: str = "") -> dict[str, BucketEntry]:
    """Return asset -> its latest entry of the trash, for an asset or all of `<study>` or `<study>/<ablation>`."""
    entries = BucketTrash(store.mirror).all()
    return {entry.asset: entry for entry in entries if not name or f"{entry.asset}/".startswith(f"{name}/")}


def restore(store: BucketStore, asset: str, entry: BucketEntry) -> None:
    """Bring an asset back from the trash.

    Raises:
        NotRestorable: it was made again, a run works on it, or an object of it is gone.
    """
    if because := run_at_work(store, asset):
        raise NotRestorable(f"{asset}: {because}")
    present = store.mirror.objects()
    if lost := sorted(entry.keys - present.keys()):
        raise NotRestorable(f"{asset}: {store.mirror.address}/{lost[0]} is missing")
    if not store.mirror.manifests.put(asset, entry.manifest, None):
        raise NotRestorable(f"{asset}: is in the store, so that the one in the trash stays there")
    BucketTrash(store.mirror).delete(entry)


def _assets(store: BucketStore, configured: Collection[str]) -> Iterator[BucketRemovable]:
    etags = store.mirror.manifests.etags()
    for name in store.assets():
        if name in configured:
            continue
        if not is_asset_name(name):
            said = f"is not the name of an asset; look at {store.mirror.address}/{key_of(name)}, and delete it by hand"
            yield BucketRemovable(name, said, said, {})
            continue
        because = run_at_work(store, name)
        yield BucketRemovable(name, reason_of(name, configured), because, _sizes(store, name), etags.get(name, ""))


def _checkpoints(store: BucketStore, configured: Mapping[str, str]) -> Iterator[BucketRemovable]:
    """Yield the checkpoints in the bucket whose asset is not configured, or complete as it is configured."""
    found: dict[str, dict[str, int]] = {}
    for key, info in store.mirror.objects().items():
        if (asset := _asset_of_checkpoint(key)) is not None:
            found.setdefault(asset, {})[key] = info.bytes
    for asset, sizes in sorted(found.items()):
        folder = f"{CHECKPOINTS}/{asset}"
        if asset not in configured:
            reason = f"checkpoints in the bucket; {reason_of(asset, configured)}"
        else:
            children = {key.removeprefix(f"{folder}/").partition("/")[0] for key in sizes}
            resumed = {child for child in children if is_resumed(store, asset, child, configured)}
            sizes = {
                key: size
                for key, size in sizes.items()
                if key.removeprefix(f"{folder}/").partition("/")[0] not in resumed
            }
            reason = "checkpoints in the bucket; the asset is complete"
        if sizes:
            total = {folder: sum(sizes.values())}
            yield BucketRemovable(folder, reason, run_at_work(store, asset), total, keys=tuple(sizes))


def _asset_of_checkpoint(key: str) -> str | None:
    """Return the asset whose checkpoint an object is part of; None if it is no part of one."""
    parts = key.split("/")
    names = ["/".join(parts[1:end]) for end in (3, 4)] if parts[0] == CHECKPOINTS else []
    return next((name for name in names if is_asset_name(name) and places_of(name)), None)


def _sizes(store: BucketStore, asset: str) -> dict[str, int]:
    """Return the size of the objects in each folder of an asset, those of earlier versions too."""
    objects = store.mirror.objects()
    found = {
        place: sum(info.bytes for key, info in objects.items() if key.startswith(f"{place}/"))
        for place in places_of(asset).values()
    }
    return {place: size for place, size in found.items() if size}


def _remove_asset(store: BucketStore, item: BucketRemovable, now: bool) -> None:
    asset, mirror = item.name, store.mirror
    if because := item.kept_because or run_at_work(store, asset):
        raise NotRemovable(f"{asset}: {because}")
    with store.leases.hold(worker_of(asset), lambda _: None, [asset]):
        found = mirror.bucket.read(key_of(asset))
        if found is None or found[1].etag != item.etag:
            raise NotRemovable(f"{asset}: has changed since it was listed; run the command again")
        if not now:
            BucketTrash(mirror).put(asset, found[0])
        mirror.manifests.delete(asset)
        if now:
            folders = tuple(f"{place}/" for place in places_of(asset).values())
            mirror.delete([key for key in mirror.objects() if key.startswith(folders)])


def _left_over(store: BucketStore) -> Iterator[BucketRemovable]:
    if any(store.damaged_manifest(asset) for asset in store.assets()):
        # What a damaged manifest names is not known.
        return
    named, age = _named(store), store.mirror.clock.age_of
    old = {
        key: info.bytes
        for key, info in store.mirror.objects().items()
        if key not in named and _OBJECT.fullmatch(key) and age(info) > KEEP_UNREFERENCED_S
    }
    sizes: dict[str, int] = {}
    for key, size in old.items():
        sizes[key.partition("/")[0]] = sizes.get(key.partition("/")[0], 0) + size
    if old:
        reason = "of earlier versions, and of runs that ended before they published"
        yield BucketRemovable(LEFT_OVER, reason, None, sizes, keys=tuple(old))


def _named(store: BucketStore) -> set[str]:
    """Return the keys that a manifest names, in the store or in its trash."""
    manifests = (store.read_manifest(asset) for asset in store.assets())
    named = {key_of_file(file) for manifest in manifests if manifest for file in manifest.files}
    return named.union(*(entry.keys for entry in BucketTrash(store.mirror).all()))
