"""What `tokenuq prune` calls: the functions for a store in a folder, or those for one in a bucket."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenuq_pipeline.runtime import bucket_pruning, pruning, restoring
from tokenuq_pipeline.runtime.bucket_store import BucketStore, address_of
from tokenuq_pipeline.runtime.bucket_trash import BucketTrash
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.trash import TRASH, Trash


@dataclass(frozen=True)
class Pruner:
    """Functions that list, delete and restore, each with the store as its first argument."""

    removable: Callable[..., list[Any]]
    remove: Callable[..., None]
    restorable: Callable[..., dict[str, Any]]
    restore: Callable[..., None]
    trash: Trash | BucketTrash
    trash_place: str
    """Where the trash is, for messages."""


def pruner_of(store: Store) -> Pruner:
    """Return the functions for a store."""
    place = f"{address_of(store)}/{TRASH}"
    if isinstance(store, BucketStore):
        trash, of = BucketTrash(store.mirror), bucket_pruning
        return Pruner(of.removable, of.remove, of.restorable, of.restore, trash, place)
    return Pruner(pruning.removable, pruning.remove, restoring.restorable, restoring.restore, Trash(store.home), place)
