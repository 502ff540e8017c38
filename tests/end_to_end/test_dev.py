"""The UI with its daemon: schedules and sensors work, and runs that are cancelled or killed leave nothing."""

import json
import os
import signal
import time

import dagster as dg
import pytest

from tests.support.dev_server import DevServer
from tests.support.toy_pipeline import STUDY, config_with
from tokenuq_pipeline.automation.reruns import RERUN_TAG, WAVE_TAG
from tokenuq_pipeline.runtime.data_files import observe
from tokenuq_pipeline.runtime.instance import ACCELERATOR, prepare
from tokenuq_pipeline.runtime.processes import is_running

pytestmark = pytest.mark.slow
MODEL = ["models", "tiny"]


def pids(server, asset="models/tiny"):
    """Of the hanging stage and of its own child; empty before it runs."""
    path = server.toy.store.home / ".checkpoints" / asset / "pids"
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def worker_of(server, run_id):
    """The pid of the process that executes the run."""
    with server.toy.instance() as instance:
        for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
            if "in process (pid:" in entry.message or "parent process (pid:" in entry.message:
                return int(entry.message.rpartition("pid: ")[2].rstrip(")"))


@pytest.fixture(scope="module")
def automated(tmp_path_factory):
    """A server whose schedule ticks every minute. It starts first and works while the other test runs."""
    folder = tmp_path_factory.mktemp("automated")
    server = DevServer(folder, TOKENUQ_AUTOMATE="1", TOKENUQ_SCHEDULE="* * * * *")
    with server.toy.instance() as instance:
        # Otherwise the sensor would request the data file before the schedule does.
        observe(config_with(folder), instance, server.toy.store)
    with server:
        yield server


def wait_for_a_slot_and_cancel(server):
    """Two runs from the UI: the second waits for the first's slot; both are cancelled, the first within its step."""
    store = server.toy.store
    first = server.launch(MODEL)
    stage = server.wait(lambda: pids(server))
    # The second waits in Dagster's pool: its child, which would load the model once more, is not even started.
    second = server.launch(MODEL)
    server.wait(lambda: server.status(second) in ("STARTED", "QUEUED"))
    time.sleep(2)
    with server.toy.instance() as instance:
        assert instance.event_log_storage.get_concurrency_info(ACCELERATOR).active_run_ids == {first}
    assert pids(server) == stage and all(is_running(pid) for pid in stage)
    server.cancel(second)
    server.wait(lambda: server.status(second) == "CANCELED")
    server.cancel(first)
    server.wait(lambda: server.status(first) == "CANCELED")
    assert not any(is_running(pid) for pid in stage)
    for name in ("checkpoint", "pids"):
        path = store.home / ".checkpoints/models/tiny" / name
        assert name == "pids" or path.read_text() == "step 7"
        path.unlink()
    assert not list((store.home / ".staging").iterdir())


def kill_the_worker(server):
    """The stage ends by itself, and Dagster marks the run."""
    run = server.launch(MODEL)
    stage = server.wait(lambda: pids(server))
    os.kill(worker_of(server, run), signal.SIGKILL)
    server.wait(lambda: not any(is_running(pid) for pid in stage))
    server.wait(lambda: server.status(run) == "FAILURE")
    (server.toy.store.home / ".checkpoints/models/tiny/pids").unlink()


def kill_all_of_dagster(server):
    """The stage ends by itself; the next start closes the run's record and frees its slot."""
    store, run = server.toy.store, server.launch(MODEL)
    stage = server.wait(lambda: pids(server))
    server.kill()
    deadline = time.monotonic() + 40
    while any(is_running(pid) for pid in stage):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert server.status(run) == "STARTED"
    with server.toy.instance() as instance:
        done = prepare(instance, server.toy.store.home, {})
        assert any(f"run {run[:8]} marked as ended" in line for line in done)
        assert not instance.event_log_storage.get_concurrency_info(ACCELERATOR).active_run_ids
    assert server.status(run) == "FAILURE" and not store.is_complete("models/tiny")
    assert store.clean_staging() and not list((store.home / ".staging").iterdir())
    (store.home / ".checkpoints/models/tiny/pids").unlink()


def end_by_a_signal(server):
    """SIGTERM to the command ends all of Dagster; the stage writes its checkpoint."""
    run = server.launch(MODEL)
    stage, others = server.wait(lambda: pids(server)), server.descendants()
    checkpoint = server.toy.store.home / ".checkpoints/models/tiny/checkpoint"
    # That of a stage that ended before.
    checkpoint.unlink(missing_ok=True)
    server.process.terminate()
    assert server.process.wait(60) == 0
    assert not any(is_running(pid) for pid in [*stage, *others])
    assert checkpoint.read_text() == "step 7"
    assert server.status(run) == "FAILURE"


@pytest.mark.usefixtures("automated")
def test_what_people_and_kills_do_to_runs_leaves_no_process_and_no_half_table(tmp_path):
    behaviour = tmp_path / "behaviour.json"
    behaviour.write_text(json.dumps({"hang": "models"}))
    environment = {"FAKE_STAGE": f"@{behaviour}"}
    with DevServer(tmp_path, **environment) as server:
        with server.toy.instance() as instance:
            prepare(instance, server.toy.store.home, {})
        for resource, config in (("launcher", {"package": "evil"}), ("io_manager", {"base_dir": "/"})):
            refusal = server.launch(MODEL, config={"resources": {resource: {"config": config}}})
            assert "unexpected config entry" in refusal and not server.runs()
        wait_for_a_slot_and_cancel(server)
        kill_the_worker(server)
        kill_all_of_dagster(server)


@pytest.mark.heavy
def test_runs_of_the_multiprocess_executor_are_cancelled_ended_by_a_signal_and_succeed(tmp_path):
    behaviour = tmp_path / "behaviour.json"
    behaviour.write_text(json.dumps({"hang": "models"}))
    with DevServer(tmp_path, TOKENUQ_EXECUTOR="multiprocess", FAKE_STAGE=f"@{behaviour}") as server:
        with server.toy.instance() as instance:
            prepare(instance, server.toy.store.home, {})
        wait_for_a_slot_and_cancel(server)
        end_by_a_signal(server)
        behaviour.write_text("{}")
    with DevServer(tmp_path, TOKENUQ_EXECUTOR="multiprocess", FAKE_STAGE=f"@{behaviour}") as server:
        run = server.launch(MODEL)
        server.wait(lambda: server.status(run) == "SUCCESS")
        assert server.toy.store.is_complete("models/tiny")


@pytest.mark.heavy
def test_with_two_slots_the_steps_of_a_run_work_at_once_and_are_cancelled_together(tmp_path):
    behaviour, dataset = tmp_path / "behaviour.json", "datasets/toy"
    behaviour.write_text(json.dumps({"hang": "models", "wait": "datasets"}))
    with DevServer(tmp_path, TOKENUQ_ACCELERATOR_SLOTS="2", FAKE_STAGE=f"@{behaviour}") as server:
        run = server.launch(MODEL, dataset.split("/"))
        stages = server.wait(lambda: (found := [pids(server), pids(server, dataset)]) and all(found) and found)
        server.cancel(run)
        server.wait(lambda: server.status(run) == "CANCELED")
        assert not any(is_running(pid) for pid in (*stages[0], *stages[1]))
        assert (server.toy.store.home / ".checkpoints/models/tiny/checkpoint").read_text() == "step 7"


def test_the_daemon_runs_schedule_waves_and_changed_files(automated):
    """One study from an empty store to fresh, then a new data file, without a person."""
    server, store = automated, automated.toy.store
    server.wait(lambda: store.is_complete(f"{STUDY}/ablation_report"), 150)
    first = server.runs()[0]
    assert first.tags[RERUN_TAG] == "schedule" and first.tags["dagster/schedule_name"] == f"{STUDY}__rerun"
    # Otherwise its next tick might take the data file before the sensor sees it.
    server.stop_schedule(f"{STUDY}__rerun")
    server.wait(lambda: server.status(first.run_id) == "SUCCESS")
    before = store.read_manifest("datasets/extra").provenance.run_id
    (server.folder / "extra.jsonl").write_text('{"rows": 2}\n')
    run = server.wait(
        lambda: next((run for run in server.runs() if run.tags.get(RERUN_TAG) == "data file of extra"), None), 150
    )
    assert run.tags[WAVE_TAG] == "1" and run.tags["dagster/sensor_name"] == "data_files"
    server.wait(lambda: server.status(run.run_id) == "SUCCESS")
    assert store.read_manifest("datasets/extra").provenance.run_id == run.run_id != before
