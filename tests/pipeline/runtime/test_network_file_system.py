"""A store on a network file system: no locks, no exchange of folders, and what others do is seen late."""

import os
import subprocess
import sys
import time

import pytest

from tests.support import store_actions
from tests.support.network_files import network_files
from tests.support.paths import ROOT
from tokenuq_pipeline.runtime.leases import Leases
from tokenuq_pipeline.runtime.pruning import removable, remove
from tokenuq_pipeline.runtime.store import Store

ASSET = "datasets/d"


def publish(store, version):
    store_actions.publish(store, ASSET, version, store_actions.fill(store, ASSET, version))


def test_an_asset_is_published_replaced_and_pruned(tmp_path):
    store = Store(tmp_path / "store")
    with network_files(delay=0.2) as cache:
        for version in ("1", "2"):
            publish(store, version)
            assert store_actions.observed(store, ASSET) == version
        (item,) = removable(store, {"datasets/other": "1-s"})
        remove(store, item)
        assert not store.is_complete(ASSET)
        store_actions.bring_back(store, ASSET)
        assert store_actions.observed(store, ASSET) == "2" and cache.was_late
    assert store_actions.observed(store, ASSET) == "2"


def test_what_another_client_published_is_seen_within_the_delay(tmp_path):
    """Until then, the version before is seen, the new one or none; never a mixture."""
    store, other = Store(tmp_path / "store"), Store(tmp_path / "store")
    publish(other, "1")
    with network_files(0.3) as client:
        assert store_actions.observed(store, ASSET) == "1"
    publish(other, "2")
    with network_files(0.3, client):
        assert store_actions.observed(store, ASSET) in ("1", "2", None)
        time.sleep(0.35)
        assert store_actions.observed(store, ASSET) == "2"


@pytest.mark.heavy
def test_of_several_clients_one_at_a_time_publishes(tmp_path):
    home, rounds, clients = tmp_path / "store", 8, 3
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENUQ_LEASE_SECONDS": "3"}
    command = [sys.executable, "-m", "tests.support.network_worker", str(home), str(rounds), "0.3"]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(clients)
    ]
    ended = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * clients, "\n".join(error for _, error in ended)
    said = [line for out, _ in ended for line in out.splitlines() if "waits for" not in line]
    assert len(said) == rounds * clients and not [line for line in said if line.startswith("lost")]
    store = Store(home)
    assert store_actions.observed(store, ASSET) in said
    # Each hold takes a number, and each publication another.
    assert Leases(home).latest(ASSET).number == 2 * rounds * clients
