"""Actions on a store as runs and users take them, the processes that take them and are killed, and what readers see.

Each folder of an asset holds two small files. Files of all versions have the same size, so that nothing but their
content tells a mixture of two versions.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

from tests.support.crashes import Crash, crash_at
from tokenuq_ml.stages.request import AssetRequest, AssetResult, StageRequest
from tokenuq_ml.tables.partitions import complete_files
from tokenuq_pipeline.assets import publishing
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime import journal, leases, owners
from tokenuq_pipeline.runtime.manifest import Manifest
from tokenuq_pipeline.runtime.owners import Owner
from tokenuq_pipeline.runtime.pruning import removable, remove
from tokenuq_pipeline.runtime.restoring import restorable, restore
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import places_of, worker_of
from tokenuq_pipeline.runtime.trash import Trash

ASSETS = ("datasets/d", "s/a/student")
FILES = ("part-0.parquet", "more/file")
"""What each folder of an asset holds."""
PIDS = itertools.count(2**30)
"""Of processes that run no more: no system has so many."""
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where stores are made, if the system has such a folder: thousands of them are."""


def stage_asset(asset: str) -> StageAsset:
    """Return an asset that reads nothing, as the pipeline describes it."""
    path = tuple(asset.split("/"))
    return StageAsset(path[-1] if len(path) == 3 else path[0], path, {}, "", frozenset(), places_of(asset))


def fill(store: Store, asset: str, version: str) -> dict[str, Path]:
    """Fill a staging folder as the child of a stage does it; return output -> folder."""
    folders = {output: store.home / ".staging" / version / output for output in places_of(asset)}
    for output, place in places_of(asset).items():
        for name in FILES:
            path = folders[output] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{version} {place}/{name}")
    return folders


def publish(store: Store, asset: str, version: str, staged: dict[str, Path]) -> None:
    """Publish what was staged, as a step of a run does it."""
    spec, folders = stage_asset(asset), {output: str(folder) for output, folder in staged.items()}
    made = AssetRequest(fields={}, code_version=spec.code_version, outputs=folders)
    request = StageRequest(entrypoint="", assets={spec.stage: made}, inputs={}, work_dir="")
    no_git = mock.patch.object(publishing, "git_state", dict)
    with no_git, store.leases.hold(worker_of(asset), print) as lease:
        publishing.publish(store, lease, request, spec, AssetResult(stage=spec.stage, data_version=version), "run", {})


def prune(store: Store, asset: str, now: bool = False) -> None:
    """Delete an asset as `tokenuq prune` does, from a configuration without it."""
    configured = {name: "1-s" for name in ASSETS if name != asset}
    for item in removable(store, configured):
        remove(store, item, now)


def bring_back(store: Store, asset: str) -> None:
    """Restore an asset as `tokenuq prune --restore` does."""
    if entry := restorable(store, asset).get(asset):
        restore(store, asset, entry)


def observed(store: Store, asset: str) -> str | None:
    """Return the version that readers get of an asset, after looking at every file; None if they get nothing."""
    if not store.is_complete(asset):
        return None
    record = store.read_manifest(asset)
    assert store.problems(asset) == []
    for place in places_of(asset).values():
        for name in FILES:
            assert store.path(f"{place}/{name}").read_text() == f"{record.data_version} {place}/{name}"
    return record.data_version


def recorded(store: Store, asset: str) -> str | None:
    """Return the version in the manifest of an asset, complete or not; None if there is no manifest."""
    record = store.read_manifest(asset)
    return record.data_version if record else None


def tables_read(store: Store) -> set[str]:
    """Return the folders of tables that queries read, relative to the store."""
    files = (path for paths in complete_files(store.home).values() for path in paths)
    return {path.parent.relative_to(store.home).as_posix() for path in files}


def interrupt(store: Store, asset: str) -> None:
    """Leave a complete asset as a run leaves it that is killed in the middle of publishing it again."""
    record = store.read_manifest(asset)
    staged = {output: store.home / ".staging" / "copy" / output for output in record.outputs}
    for output, place in record.outputs.items():
        shutil.copytree(store.path(place), staged[output])
    moved = journal.move_into_place

    def die(*arguments):
        moved(*arguments)
        raise Crash

    dead = mock.patch.object(journal.Journal, "recover", side_effect=Crash)
    with dead, mock.patch.object(journal, "move_into_place", die), contextlib.suppress(Crash):
        store.publish(record, staged)
    shutil.rmtree(store.home / ".staging" / "copy")


def damage(store: Store, asset: str, version: str) -> None:
    """Change a file of a version, wherever a publication that was interrupted has left it; its size stays."""
    roots = {".publishing", *(place.split("/")[0] for place in places_of(asset).values())}
    paths = [path for root in sorted(roots) for path in store.path(root).rglob(FILES[0])]
    path = next(path for path in paths if path.read_text().startswith(f"{version} "))
    path.write_text(path.read_text().replace(version, "v999999"))


def begun(store: Store, asset: str) -> str | None:
    """Return the version of which a publication was interrupted after it had begun; None without one."""
    paths = store.home.glob(f".publishing/{asset.replace('/', '.')}+*/manifest.json")
    return next((Manifest.read_of(asset, path).data_version for path in paths), None)


def in_trash(store: Store, asset: str) -> list[str]:
    """Return the versions of an asset whose manifest is in the trash, oldest first."""
    paths = [entry.path / ".manifests" / f"{asset}.json" for entry in Trash(store.home).entries()]
    return [Manifest.read(path).data_version for path in paths if path.exists()]


def killed(store: Store, action: Callable[[Store], None], number: int | None, exchange: bool = True) -> bool:
    """Run an action in a process of its own that is killed at a change; return whether it was."""
    pid = next(PIDS)
    process = replace(Owner.current(), pid=pid, started=pid)
    try:
        with mock.patch.object(owners, "_owner", lambda pid: process), crash_at(number, exchange):
            action(Store(store.home))
    except Crash:
        return True
    finally:
        leases._HELD.clear()
    return False


def at_each_change(
    prepare: Callable[[Store], None], action: Callable[[Store], None], check: Callable[[Store], None], exchange: bool
) -> int:
    """Kill an action at its first change to the disk, at its second, and so on, each time in a new store.

    Returns:
        The number of changes that the action makes when nothing kills it.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        prepare(Store(Path(folder, "template")))
        for number in itertools.count(1):
            store = Store(Path(folder, str(number)))
            shutil.copytree(Path(folder, "template"), store.home)
            was_killed = killed(store, action, number, exchange)
            check(store)
            if not was_killed:
                return number - 1
            shutil.rmtree(store.home)
