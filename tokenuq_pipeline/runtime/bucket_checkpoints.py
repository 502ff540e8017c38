"""Checkpoints of a stage in the bucket of its store, copied while its run is on this machine.

Before a stage starts, those that this machine does not have are brought here. Meanwhile a thread of its run copies what
is complete (`tokenuq_ml/object_store/checkpoints.py`).
"""

import contextlib
from collections.abc import Callable, Iterator

from tokenuq_ml.background import looking
from tokenuq_ml.object_store.bucket import StoreAway
from tokenuq_ml.object_store.checkpoints import LOOK_S, CheckpointCopies
from tokenuq_pipeline.runtime.bucket_store import BucketStore
from tokenuq_pipeline.runtime.leases import Lease
from tokenuq_pipeline.runtime.store import Store


@contextlib.contextmanager
def carried_checkpoints(store: Store, lease: Lease, say: Callable[[str], None]) -> Iterator[None]:
    """Bring the checkpoints of a stage here, and copy new ones into the bucket; nothing for a store in a folder.

    Args:
        store: the store.
        lease: of the stage's first asset, which names its folder of checkpoints. Once it is lost nothing is copied.
        say: called with one sentence if the service does not answer at the end.

    Raises:
        StoreAway: the service does not answer before the stage starts.
    """
    if not isinstance(store, BucketStore):
        yield
        return
    copies = CheckpointCopies(store.mirror, lease.asset)
    copies.bring()

    def look() -> bool:
        with contextlib.suppress(StoreAway):
            if not lease.lost:
                copies.send()
        return lease.lost

    try:
        with looking(look, LOOK_S, "checkpoints"):
            yield
    finally:
        try:
            if not lease.lost:
                copies.send()
        except StoreAway as away:
            say(f"the checkpoint of {lease.asset} stays on this machine: {away}")
