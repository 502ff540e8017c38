"""A process that publishes an asset again and again in a store that it sees as an NFS client does.

`python -m tests.support.network_worker <store> <rounds> <delay>` prints each version that it has published.
"""

import os
import sys
from pathlib import Path

from tests.support import store_actions
from tests.support.network_files import network_files
from tokenuq_pipeline.runtime import leases
from tokenuq_pipeline.runtime.leases import LeaseLost
from tokenuq_pipeline.runtime.store import Store

ASSET = "datasets/d"


def main(home: Path, rounds: int, delay: float) -> None:
    leases.POLL_S = 0.02
    inside = str(home.with_name("inside"))
    make, remove = os.mkdir, os.rmdir
    with network_files(delay):
        store = Store(home)
        publish = store.publish

        def alone(manifest, staged):
            # The real system calls: that nobody else is in here is seen at once.
            make(inside)
            publish(manifest, staged)
            assert store_actions.observed(store, ASSET) == manifest.data_version
            remove(inside)

        store.publish = alone
        for number in range(rounds):
            version = f"{os.getpid()}-{number:02d}"
            try:
                store_actions.publish(store, ASSET, version, store_actions.fill(store, ASSET, version))
                print(version, flush=True)
            except LeaseLost as lost:
                print(f"lost: {lost}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
