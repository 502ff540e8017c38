"""Two runs of one study at once, in terminals and containers; a run that is killed or suspended; a copied store."""

import os
import shutil
import signal
import subprocess

import dagster as dg
import pytest

from tests.support.processes import wait_until
from tests.support.shared_store import CONTAINER, SharedStore, end
from tokenuq_pipeline.runtime.processes import is_running

pytestmark = pytest.mark.heavy
NEVER = "1000000"
"""An expiry that no test waits for: who gets the lease got it at once."""
N_STAGES = 10
"""Child processes that make the toy study."""


@pytest.fixture
def shared(tmp_path):
    made = SharedStore(tmp_path)
    yield made
    made.kill()


def namespaces_work() -> bool:
    try:
        return subprocess.run([*CONTAINER, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


containers = pytest.mark.skipif(not namespaces_work(), reason="needs PID namespaces, which unshare refuses here")


def require_made_once(shared):
    assert len(shared.stages) == len(set(shared.stages)) == N_STAGES, shared.stages
    assert not list((shared.store.home / ".staging").iterdir()) and not list((shared.store.home / ".owners").iterdir())
    assert not any(shared.store.problems(name) for name in shared.store.assets())


def test_two_runs_at_once_make_each_asset_once(shared):
    runs = [shared.start(home) for home in ("one", "two")]
    for code, out in map(end, runs):
        assert code == 0, out
    require_made_once(shared)


def test_two_runs_with_one_dagster_home_make_each_asset_once(shared):
    runs = [shared.start("one") for _ in range(2)]
    for code, out in map(end, runs):
        assert code == 0, out
    require_made_once(shared)


@containers
@pytest.mark.parametrize("homes", [("one", "two"), ("one", "one")])
def test_runs_in_two_containers_make_each_asset_once(shared, homes):
    runs = [shared.start(home, *CONTAINER, TOKENUQ_LEASE_SECONDS=NEVER) for home in homes]
    for code, out in map(end, runs):
        assert code == 0, out
    require_made_once(shared)


@containers
def test_a_start_in_another_container_leaves_staging_and_run_of_the_first(shared):
    first = shared.start("one", *CONTAINER, children=True, FAKE_STAGE='{"hang": "models"}')
    wait_until(shared.hanging.exists, 120)
    second = shared.start("one", *CONTAINER)
    wait_until(lambda: "waits for a slot" in second.stdout.readline(), 120)
    assert len(list((shared.store.home / ".staging").iterdir())) == 1 and first.poll() is None
    with dg.DagsterInstance.from_config(str(shared.folder / "one")) as instance:
        # What was adopted is checked in a run of its own.
        statuses = [run.status.value for run in instance.get_runs()]
        assert statuses.count("STARTED") == 2 and "FAILURE" not in statuses


def test_after_a_kill_the_next_run_goes_on_at_once(shared):
    first = shared.start("one", children=True, FAKE_STAGE='{"hang": "models"}', TOKENUQ_LEASE_SECONDS=NEVER)
    wait_until(shared.hanging.exists, 120)
    first.kill()
    first.wait()
    code, out = end(shared.start("one", children=True, TOKENUQ_LEASE_SECONDS=NEVER))
    # The stage of the killed run has written its checkpoint first.
    assert code == 0 and shared.checkpoint.read_text() == "step 7", out


@containers
def test_after_a_kill_in_another_container_the_next_run_goes_on_after_the_expiry(shared):
    first = shared.start("one", *CONTAINER, children=True, FAKE_STAGE='{"hang": "models"}', TOKENUQ_LEASE_SECONDS="4")
    wait_until(shared.hanging.exists, 120)
    first.kill()
    first.wait()
    code, out = end(shared.start("two", children=True, TOKENUQ_LEASE_SECONDS="4"))
    assert code == 0 and "waits for process 1 on" in out, out


@pytest.mark.parametrize("home", ["one", "two"])
def test_a_suspended_run_is_overtaken_and_uses_what_the_other_has_made(shared, home):
    lease = {"TOKENUQ_LEASE_SECONDS": "4"}
    first = shared.start("one", children=True, FAKE_STAGE='{"hang": "models"}', **lease)
    wait_until(shared.hanging.exists, 120)
    stage = [int(pid) for pid in shared.hanging.read_text().split()]
    first.send_signal(signal.SIGSTOP)
    code, out = end(shared.start(home, children=True, **lease))
    # With one DAGSTER_HOME, the suspended run also held the slot.
    assert code == 0 and ("waits for" in out or "it is suspended" in out), out
    # It has stopped by itself, with a checkpoint, before the other has begun.
    assert shared.checkpoint.read_text() == "step 7" and not is_running(stage[0])
    made = shared.store.read_manifest("models/tiny")
    first.send_signal(signal.SIGCONT)
    code, out = end(first)
    assert code == 0 and "models/tiny was made by another run meanwhile" in out, out
    assert shared.store.read_manifest("models/tiny") == made
    assert shared.stages.count("models/tiny") == 2


def test_a_store_that_was_copied_during_a_run_is_used_at_once_and_the_run_goes_on(shared, tmp_path):
    first = shared.start("one", children=True, FAKE_STAGE='{"hang": "models"}', TOKENUQ_LEASE_SECONDS="12")
    wait_until(shared.hanging.exists, 120)
    shutil.copytree(shared.store.home, tmp_path / "copy" / "store")
    copy = SharedStore(tmp_path / "copy", tmp_path / "copy" / "store")
    code, out = end(copy.start("one", children=True))
    assert code == 0 and first.poll() is None, out
    assert shared.hanging.exists() and all(is_running(int(pid)) for pid in shared.hanging.read_text().split())
    first.send_signal(signal.SIGINT)
    assert end(first)[0] == 130
    moved = tmp_path / "moved"
    os.rename(shared.store.home, moved)
    again = SharedStore(tmp_path, moved)
    code, out = end(again.start("one"))
    assert code == 0, out
