"""Find and delete assets that no configuration refers to, and checkpoints that no training needs.

Does not import Dagster: the records of Dagster's runs stay.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenuq_pipeline.runtime.store import Store

NOT_CHECKPOINTS = {".lock"}


@dataclass(frozen=True)
class Removable:
    """Something that can be deleted from the store: an asset with its folders, or folders of checkpoints."""

    name: str
    reason: str
    folders: tuple[Path, ...]
    asset: str | None = None
    """The asset whose manifest goes too; None for checkpoints."""

    @property
    def bytes(self) -> int:
        """Return the size of the files."""
        files = (path for folder in self.folders for path in folder.rglob("*"))
        return sum(path.lstat().st_size for path in files if not path.is_dir())


def removable(store: Store, configured: Mapping[str, str], study: str | None = None) -> list[Removable]:
    """List assets that no configuration refers to, then checkpoints that no training needs.

    Args:
        store: where to look.
        configured: name -> code version of every configured asset.
        study: list only what is named `<study>/...`.
    """
    found = [*_assets(store, configured), *_checkpoints(store, configured)]
    return [item for item in found if study is None or item.name.removeprefix(".checkpoints/").startswith(f"{study}/")]


def remove(store: Store, item: Removable) -> None:
    """Delete an item. Its manifest goes first, so that a half-deleted asset is incomplete."""
    if item.asset is not None:
        store.forget(item.asset)
    for folder in item.folders:
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)
        _remove_empty(folder.parent, store.home)


def _assets(store: Store, configured: Mapping[str, str]) -> Iterator[Removable]:
    outputs = {name: _outputs(store, name) for name in store.assets()}
    in_use = {path for name in outputs if name in configured for path in outputs[name]}
    for name, paths in outputs.items():
        if name not in configured:
            folders = tuple(store.path(path) for path in paths if path not in in_use and store.path(path).is_dir())
            yield Removable(name, "not in the configuration", folders, name)


def _checkpoints(store: Store, configured: Mapping[str, str]) -> Iterator[Removable]:
    root = store.home / ".checkpoints"
    # A launcher leaves a lock in each folder that it worked in; the other folders are found by their asset's name.
    locked = {path.parent.relative_to(root).as_posix() for path in root.rglob(".lock")}
    for name in sorted(locked | {name for name in (*configured, *store.assets()) if (root / name).is_dir()}):
        folder = root / name
        if name not in configured:
            yield Removable(
                f".checkpoints/{name}", "checkpoints of an asset that is not in the configuration", (folder,)
            )
        elif _is_current(store, name, configured[name]):
            left = tuple(path for path in folder.iterdir() if path.name not in NOT_CHECKPOINTS)
            if left:
                yield Removable(f".checkpoints/{name}", "checkpoints of earlier specs; the asset is complete", left)


def _is_current(store: Store, asset: str, code_version: str) -> bool:
    manifest = store.read_manifest(asset)
    return manifest is not None and manifest.code_version == code_version and store.is_complete(asset)


def _outputs(store: Store, asset: str) -> list[str]:
    manifest = store.read_manifest(asset)
    return list(manifest.outputs.values()) if manifest else []


def _remove_empty(folder: Path, home: Path) -> None:
    """Delete empty folders from `folder` up to the store."""
    while folder != home and home in folder.parents and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
