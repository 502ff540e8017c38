"""Find and delete assets that no configuration refers to, and checkpoints that no training needs.

An asset's folders follow from its name, and from nothing that its manifest says. Each item is deleted only if no run
works on it, if it has not been made again since it was listed, and if no symbolic link leads to it.

Does not import Dagster: the records of Dagster's runs stay.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenuq_ml.config import RESERVED_STUDIES
from tokenuq_ml.disk import folder_size, full_disk
from tokenuq_ml.object_store.address import CHECKPOINTS
from tokenuq_pipeline.runtime.folder_lock import is_locked, store_lock
from tokenuq_pipeline.runtime.launchers.job_folders import jobs_in
from tokenuq_pipeline.runtime.leases import Leases
from tokenuq_pipeline.runtime.places import MANIFESTS, is_asset_name, linked, manifest_place
from tokenuq_pipeline.runtime.publication import recover_locked
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import asset_of_checkpoint, places_of, worker_of
from tokenuq_pipeline.runtime.trash import Trash

NOT_CHECKPOINTS = {".lock"}


class NotRemovable(Exception):
    """Something stays in the store; the message says why."""


@dataclass(frozen=True)
class Removable:
    """Something that can be deleted from the store: an asset with its manifest, or checkpoints."""

    name: str
    """`<asset>`, or `.checkpoints/<asset>`."""
    reason: str
    places: tuple[str, ...]
    """What goes, relative to the store, in this order: of an asset, each folder that it can have, then its manifest."""
    home: Path
    kept_because: str | None = None
    """Why it must stay for now; None if it can go."""
    stamp: tuple[tuple[str, int, int], ...] = field(default=(), compare=False)
    """What it looked like when it was listed: path, inode, modification time."""

    @property
    def asset(self) -> str:
        """Return the asset that it belongs to."""
        return self.name.removeprefix(f"{CHECKPOINTS}/")

    @property
    def sizes(self) -> dict[str, int]:
        """Return the size of each folder that exists, the manifest left out."""
        present = [place for place in self.places if os.path.lexists(self.home / place)]
        return {place: _size(self.home / place) for place in present if not place.startswith(f"{MANIFESTS}/")}

    @property
    def bytes(self) -> int:
        """Return the size of its files."""
        return sum(_size(self.home / place) for place in self.places)


def foreign(store: Store, configured: Collection[str]) -> str | None:
    """Return why a configuration is not the store's own: it knows none of the studies, so that it would delete all.

    Args:
        store: where to look.
        configured: names of the configured assets.

    Returns:
        The beginning of a sentence; None if it knows a study of the store, or the store is empty.
    """
    names = [name for name in store.assets() if is_asset_name(name)] + list(_checkpoint_folders(store))
    studies = {study for name in names if (study := _study(name)) is not None}
    if studies and not studies & {_study(name) for name in configured}:
        shown = sorted(studies)[:5]
        more = f" and {len(studies) - 5} more" if len(studies) > 5 else ""
        return f"{store.home}: the configuration knows no study of this store ({', '.join(shown)}{more})"
    if names and not studies and not set(names) & set(configured):
        return f"{store.home}: the configuration knows nothing of what is in this store"
    return None


def removable(store: Store, configured: Mapping[str, str], study: str | None = None) -> list[Removable]:
    """List assets that no configuration refers to, then checkpoints that no training needs.

    Args:
        store: where to look.
        configured: name -> code version of every configured asset.
        study: list only what is named `<study>/...`.
    """
    found = [*_assets(store, configured), *checkpoints(store, configured)]
    return [item for item in found if study is None or item.asset.startswith(f"{study}/")]


def remove(store: Store, item: Removable, now: bool = False) -> None:
    """Move an item to the trash.

    The manifest goes last: until then a half-deleted asset is incomplete and is listed again.

    Args:
        store: where it is.
        item: what goes.
        now: delete it for good instead.

    Raises:
        NotRemovable: a run works on it, it has changed since it was listed, a symbolic link leads to it, or the
            system does not allow it.
    """
    try:
        # Leases are taken and assets are published under the same lock.
        with store_lock(store.home):
            recover_locked(store.home, [item.asset])
            entry = _removed(store, item, now)
    except ValueError as error:
        raise NotRemovable(f"{item.name}: {error}") from error
    except OSError as error:
        helps = not now and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EXDEV)
        advice = "; `--now` deletes it without the trash" if helps else ""
        raise NotRemovable(f"{item.name}: {refusal(error, store)}{advice}") from error
    if entry is not None:
        Trash(store.home).delete(entry)


def refusal(error: OSError, store: Store) -> str:
    """Return why the system does not let an item be moved or deleted."""
    return full_disk(error, store.home) or f"{error.filename or store.home}: {error.strerror or error}"


def _removed(store: Store, item: Removable, now: bool) -> Path | None:
    """Take an item out of its place; return the entry of the trash that is to be deleted, if there is one."""
    if because := item.kept_because or _kept_because(store, item):
        raise NotRemovable(f"{item.name}: {because}")
    if item.stamp != _stamp(store.home, item.places):
        raise NotRemovable(f"{item.name}: has changed since it was listed; run the command again")
    entry = None
    try:
        entry = Trash(store.home).put(item.places)
    except OSError:
        if not now:
            raise
        # The disk is so full that it takes no folder, or the place is on another one.
        for place in item.places:
            _delete(store.home / place)
    for place in item.places:
        _remove_empty(store, (store.home / place).parent)
    return entry if now else None


def _assets(store: Store, configured: Mapping[str, str]) -> Iterator[Removable]:
    in_use = {place for name in configured for place in places_of(name).values()}
    for name in store.assets():
        if name in configured:
            continue
        if not is_asset_name(name):
            said = f"is not the name of an asset; look at {store.home / MANIFESTS / name}.json, and delete it by hand"
            yield Removable(name, said, (), store.home, said)
            continue
        places = tuple(place for place in places_of(name).values() if not _overlaps(place, in_use))
        reason = reason_of(name, configured)
        if store.damaged_manifest(name):
            reason += "; its manifest is damaged, and only folders of its name go"
        item = Removable(name, reason, (*places, manifest_place(name)), store.home)
        yield _looked_at(store, item)


def checkpoints(store: Store, configured: Mapping[str, str]) -> Iterator[Removable]:
    """Yield checkpoints that no training needs."""
    for name in _checkpoint_folders(store, configured):
        folder = f"{CHECKPOINTS}/{name}"
        if name not in configured:
            reason = f"checkpoints; {reason_of(name, configured)}"
            yield _looked_at(store, Removable(folder, reason, (folder,), store.home))
        else:
            children = (child for child in _children(store.home / folder) if child not in NOT_CHECKPOINTS)
            left = tuple(f"{folder}/{child}" for child in children if not is_resumed(store, name, child, configured))
            if left:
                reason = "checkpoints of earlier specs; the asset is complete"
                yield _looked_at(store, Removable(folder, reason, left, store.home))


def is_resumed(store: Store, worker: str, folder: str, configured: Mapping[str, str]) -> bool:
    """Return whether a stage may go on from a folder among the checkpoints of its child process, `worker`."""
    asset = asset_of_checkpoint(worker, folder)
    return asset in configured and not _is_current(store, asset, configured[asset])


def _checkpoint_folders(store: Store, configured: Collection[str] = ()) -> list[str]:
    """Return the assets that have a folder of checkpoints.

    A launcher leaves a lock in each folder that it worked in; other folders are found by their asset's name. A folder
    inside or around that of a configured asset is not an asset's own.
    """
    root = store.home / CHECKPOINTS
    locked = {path.parent.relative_to(root).as_posix() for path in root.rglob(".lock")}
    names = {*locked, *configured, *store.assets()}
    return sorted(
        name
        for name in names
        if is_asset_name(name)
        and (root / name).is_dir()
        and not any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in configured)
    )


def reason_of(name: str, configured: Collection[str]) -> str:
    """Return why no configured asset has this name."""
    first, second = name.split("/")[:2]
    if first in ("models", "datasets", "comparisons", "export"):
        return f"the configuration has no {first.removesuffix('s')} {second}"
    if not any(other.startswith(f"{first}/") for other in configured):
        return f"the configuration has no study {first}"
    if name.count("/") == 2 and not any(other.startswith(f"{first}/{second}/") for other in configured):
        return f"the study {first} has no ablation {second}"
    return "no stage of the configuration makes it"


def _looked_at(store: Store, item: Removable) -> Removable:
    """Return the item with its stamp, and with the reason if it must stay."""
    because = _kept_because(store, item)
    return Removable(item.name, item.reason, item.places, item.home, because, _stamp(store.home, item.places))


def _kept_because(store: Store, item: Removable) -> str | None:
    if (link := linked(store.home, item.places)) is not None:
        return f"{link} is a symbolic link: what it points to is not the store's own; remove the link by hand"
    return run_at_work(store, item.asset)


def run_at_work(store: Store, asset: str) -> str | None:
    """Return which run works on an asset, if one does."""
    worker = worker_of(asset)
    if (owner := Leases(store.home).holder(asset) or Leases(store.home).holder(worker)) is not None:
        return f"a run works on it: {owner.described}"
    folder = store.home / CHECKPOINTS / worker
    if job := next((job.id for job in jobs_in(folder) if job.works()), None):
        return f"the job {job} of a cluster works on it"
    # A child of an earlier version, or one that outlives its run to write a checkpoint, holds the lock of its folder.
    return "a run works on it" if is_locked(folder) else None


def _is_current(store: Store, asset: str, code_version: str) -> bool:
    manifest = store.read_manifest(asset)
    return manifest is not None and manifest.code_version == code_version and store.is_complete(asset)


def _study(name: str) -> str | None:
    first = name.partition("/")[0]
    return None if first in RESERVED_STUDIES else first


def _overlaps(place: str, others: Collection[str]) -> bool:
    return any(place == other or place.startswith(f"{other}/") or other.startswith(f"{place}/") for other in others)


def _stamp(home: Path, places: Collection[str]) -> tuple[tuple[str, int, int], ...]:
    """Return what tells a folder or file from one that is made again, or worked in, later."""
    found = []
    for place in places:
        for path in (home / place, *(home / place / child for child in _children(home / place))):
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                found.append((str(path), status.st_ino, status.st_mtime_ns))
    return tuple(found)


def _children(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return folder_size(path) if path.is_dir() else path.lstat().st_size
    return 0


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(store: Store, folder: Path) -> None:
    """Delete empty folders from `folder` upwards, but for the folders of the store itself."""
    while store.home in folder.parent.parents:
        try:
            folder.rmdir()
        except OSError:  # It is not empty, or was deleted already.
            return
        folder = folder.parent
