"""Repair what is damaged in a store, so that the next run makes again what has to be made, and nothing else.

An asset whose files differ from its manifest loses the manifest. A file that no manifest lists goes to the trash, and
the asset that it lay in stays as it is.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.integrity import REPAIR, SET_ASIDE, damages
from tokenuq_ml.tables.partitions import damaged_folders
from tokenuq_pipeline.runtime.fingerprints import Fingerprints
from tokenuq_pipeline.runtime.leases import Leases
from tokenuq_pipeline.runtime.places import MANIFESTS
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import places_of
from tokenuq_pipeline.runtime.trash import Trash


def damage(store: Store, asset: str, deep: bool) -> str | None:
    """Return what is wrong with a complete asset that no run makes again by itself, and what repairs it.

    Args:
        store: the store.
        asset: its name.
        deep: read every file. Otherwise the folders are only listed, for files that no manifest lists.
    """
    extra = [f"{path.relative_to(store.home)}: does not belong to the asset" for path in store.extra_files(asset)]
    problems = store.problems(asset) if deep else extra
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{problems[0]}{more}; {SET_ASIDE if problems == extra else REPAIR}" if problems else None


def require_undamaged(store: Store, asset: str, not_read: str = "") -> None:
    """Compare the files of an asset with its manifest, before something is read of them; nothing if it has none.

    Args:
        store: the store.
        asset: its name.
        not_read: the ending of files that are not read.

    Raises:
        InputError: a file is damaged, or the manifest.
    """
    if sentence := store.damaged_manifest(asset):
        raise InputError(sentence)
    manifest = store.read_manifest(asset)
    names = [file.path for file in manifest.files] if manifest else []
    for sentence in damages(
        store.home, [name for name in names if not (not_read and name.endswith(not_read))]
    ).values():
        raise InputError(f"{asset}: {sentence}")


def repair(store: Store, asset: str) -> str:
    """Repair an asset, and return what was done. An asset that a run is making is left as it is.

    Raises:
        InputError: a file cannot be moved or deleted.
    """
    if (owner := Leases(store.home).holder(asset)) is not None:
        return f"{owner.described} is making it again; nothing is changed"
    try:
        return _repair(store, asset)
    except (OSError, ValueError) as error:
        raise InputError(f"{asset}: cannot be repaired: {error}") from error


def _repair(store: Store, asset: str) -> str:
    extra = store.extra_files(asset)
    if not any(_was_published(store, asset, path) for path in extra):
        put_aside(store, extra)
        if not store.problems(asset):
            return f"{len(extra)} file{'s' if len(extra) > 1 else ''} moved to {Trash(store.home).path}"
    try:
        store.forget(asset)
    except ValueError:
        # No asset has such a name, or a link leads to the manifest.
        put_aside(store, [store.path(f"{MANIFESTS}/{asset}.json")])
    put_aside(store, _obstacles(store, asset))
    return "its manifest is deleted, and the next run makes it again"


def _obstacles(store: Store, asset: str) -> Iterator[Path]:
    """Yield what is no folder where the asset's folders have to be: files, and links, which no run goes through."""
    for place in places_of(asset).values():
        path = store.home
        for part in Path(place).parts:
            path = path / part
            if path.is_symlink() or (os.path.lexists(path) and not path.is_dir()):
                yield path
                break


def _was_published(store: Store, asset: str, path: Path) -> bool:
    """Return whether a file that the manifest does not list is as old as the manifest, which then has lost its entry.

    The manifest is written last: what was put into the folder later is younger.
    """
    manifest, file = (os.lstat(one) for one in (store.path(f"{MANIFESTS}/{asset}.json"), path))
    return file.st_mtime_ns <= manifest.st_mtime_ns and file.st_ctime_ns <= manifest.st_ctime_ns


def other_damage(store: Store) -> list[str]:
    """Return what is damaged and belongs to no asset: the fingerprints of data files, and folders of manifests."""
    found = Fingerprints(store.home).damage()
    return [*([found] if found else []), *damaged_folders(store.home).values()]


def repair_others(store: Store) -> None:
    """Set aside what `other_damage` finds, and delete what dead runs have left in the staging folder."""
    fingerprints = Fingerprints(store.home)
    put_aside(store, [fingerprints.path] if fingerprints.damage() else [])
    # What is a folder, and cannot be read, may hold the manifests of a whole study.
    put_aside(store, (path for path in damaged_folders(store.home) if path.is_symlink() or not path.is_dir()))
    store.clean_staging()


def put_aside(store: Store, paths: Iterable[Path]) -> None:
    """Move files or folders of the store to its trash; a link, which would lead out of the trash, is deleted."""
    for path in paths:
        if path.is_symlink():
            path.unlink()
        elif path.is_dir() and not os.listdir(path):
            path.rmdir()
        elif os.path.lexists(path):
            Trash(store.home).put([path.relative_to(store.home).as_posix()])
