"""A small store with three configured assets and one that is not: what `tokenuq prune` lists and deletes."""

import json
from pathlib import Path

from tests.support.manifests import write
from tests.support.plain_store import put, tree
from tokenuq_pipeline.runtime.pruning import removable, remove
from tokenuq_pipeline.runtime.store import Store

CONFIGURED = {"s/a/student": "1-s", "s/token_losses": "1-s", "datasets/d": "1-s", "s/reference_evaluation": "1-s"}
OLD = "s/old/student"


def prunable_store(tmp_path: Path) -> Store:
    """Make the store, next to a folder of somebody else."""
    store = Store(tmp_path / "store")
    for asset in (*CONFIGURED, OLD):
        put(store, asset, content=asset)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("x")
    return store


def names(store, study=None):
    return [item.name for item in removable(store, CONFIGURED, study)]


def forge(store, asset, **parts):
    content = json.loads((store.home / ".manifests" / f"{OLD}.json").read_text())
    write(store.home / ".manifests" / f"{asset}.json", {**content, "asset": asset, **parts})


def files(store):
    """Return what is in the store, the trash and the locks left out."""
    return {
        path: text for path, text in tree(store.home).items() if not path.startswith((".trash", ".leases", ".owners"))
    }


def remove_all(store, now=False):
    for item in removable(store, CONFIGURED):
        remove(store, item, now)


def checkpoint(store, asset, name="0123/checkpoint-7/weights"):
    path = store.work_dir(asset) / name
    path.parent.mkdir(parents=True)
    path.write_text("weights")
    return path
