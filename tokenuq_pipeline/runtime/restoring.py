"""Bring assets back that `tokenuq prune` has moved to the trash."""

import os

from tokenuq_ml.tables.integrity import file_difference
from tokenuq_ml.tables.partitions import PublishedFile
from tokenuq_pipeline.runtime.folder_lock import store_lock
from tokenuq_pipeline.runtime.manifest import Manifest
from tokenuq_pipeline.runtime.places import manifest_place
from tokenuq_pipeline.runtime.pruning import refusal, run_at_work
from tokenuq_pipeline.runtime.publication import recover_locked
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.trash import Entry, Trash


class NotRestorable(Exception):
    """Something stays in the trash; the message says why."""


def restorable(store: Store, name: str | None = None) -> dict[str, Entry]:
    """Return asset -> the last entry of the trash with its manifest.

    Args:
        store: where to look.
        name: an asset, or the beginning of names: everything below `<name>/`. None: everything.
    """
    entries = Trash(store.home).entries()
    found = {asset: entry for entry in entries for asset in entry.assets}
    return {asset: entry for asset, entry in found.items() if name is None or f"{asset}/".startswith(f"{name}/")}


def restore(store: Store, asset: str, entry: Entry) -> None:
    """Move an asset back from the trash, the manifest last. What a crash left in its place goes to the trash.

    Every file is compared with its hash first: after a crash, some folders may already be in the store.

    Raises:
        NotRestorable: the asset is in the store, a run works on it, its files are damaged, or the system does not
            allow it.
    """
    manifest = manifest_place(asset)
    try:
        with store_lock(store.home):
            recover_locked(store.home, [asset])
            if os.path.lexists(store.home / manifest):
                raise NotRestorable(f"{asset}: is in the store, so that the one in the trash stays there")
            if because := run_at_work(store, asset):
                raise NotRestorable(f"{asset}: {because}")
            places = [*_undamaged(store, Manifest.read(entry.path / manifest), entry), manifest]
            if in_the_way := [place for place in places if entry.holds(place) and os.path.lexists(store.home / place)]:
                Trash(store.home).put(in_the_way)
            Trash(store.home).take(entry, places)
    except OSError as error:
        raise NotRestorable(f"{asset}: {refusal(error, store)}") from error
    except ValueError as error:
        raise NotRestorable(f"{asset}: {error}") from error


def _undamaged(store: Store, manifest: Manifest, entry: Entry) -> list[str]:
    """Return the folders of an asset, each of which lies in the trash or, after a crash, in the store already.

    Raises:
        ValueError: a file is not as the manifest recorded it.
    """
    places = list(manifest.outputs.values())
    in_trash = tuple(f"{place}/" for place in places if entry.holds(place))
    for file in manifest.files:
        home = entry.path if file.path.startswith(in_trash) else store.home
        if wrong := file_difference(home, PublishedFile(manifest.asset, file.path, file.bytes, file.sha256)):
            raise ValueError(f"{wrong}; it cannot be restored")
    return places
