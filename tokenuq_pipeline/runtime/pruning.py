"""What in the store is of nothing that is configured any more: assets, and checkpoints that no training needs.

Finds and removes; whether to remove is the caller's question. Does not know Dagster: what it recorded stays recorded.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenuq_pipeline.runtime.store import Store

NOT_CHECKPOINTS = {".lock"}


@dataclass(frozen=True)
class Removable:
    """One thing to remove: `asset` is forgotten first where it is a whole asset, then `folders` go."""

    name: str
    why: str
    folders: tuple[Path, ...]
    asset: str | None = None

    @property
    def bytes(self) -> int:
        """What its files hold."""
        files = (path for folder in self.folders for path in folder.rglob("*"))
        return sum(path.lstat().st_size for path in files if not path.is_dir())


def removable(store: Store, configured: Mapping[str, str], study: str | None = None) -> list[Removable]:
    """Assets that are not configured, with all their files; then abandoned checkpoints.

    Args:
        configured: names of the assets that there are, with the code version of each.
        study: only what lies under this study's name.
    """
    found, kept = [], set()
    for name in store.assets():
        if name in configured:
            kept.update((store.read_manifest(name) or {}).get("outputs", {}).values())
    for name in store.assets():
        if name not in configured and _of(name, study):
            places = (store.read_manifest(name) or {}).get("outputs", {}).values()
            folders = [store.path(place) for place in places if place not in kept and store.path(place).is_dir()]
            found.append(Removable(name, "is in no configuration", tuple(folders), name))
    root = store.home / ".checkpoints"
    # Those of assets that are known, and those that a launcher has worked in.
    worked_in = {path.parent.relative_to(root).as_posix() for path in root.rglob(".lock")}
    for name in sorted(worked_in | {name for name in (*configured, *store.assets()) if (root / name).is_dir()}):
        folder = root / name
        if not _of(name, study):
            continue
        manifest = store.read_manifest(name) or {}
        done = store.is_complete(name) and manifest.get("code_version") == configured.get(name)
        abandoned = [path for path in folder.iterdir() if path.name not in NOT_CHECKPOINTS]
        if name not in configured:
            found.append(Removable(f".checkpoints/{name}", "of an asset that is in no configuration", (folder,)))
        elif done and abandoned:
            found.append(
                Removable(f".checkpoints/{name}", "left by earlier specs; the asset is done", tuple(abandoned))
            )
    return found


def remove(store: Store, what: Removable) -> None:
    """Remove it. The manifest goes first: half removed, an asset counts as not there."""
    if what.asset is not None:
        store.forget(what.asset)
    for folder in what.folders:
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)
        _remove_empty(folder.parent, store.home)


def _of(name: str, study: str | None) -> bool:
    return study is None or name.startswith(f"{study}/")


def _remove_empty(folder: Path, home: Path) -> None:
    """Folders that hold nothing any more, up to the store itself."""
    while folder != home and home in folder.parents and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
