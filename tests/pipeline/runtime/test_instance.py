"""Instance maintenance: dead runs end, their slots are freed, and the environment sets the number of slots."""

import os
import subprocess
import sys
import threading
import time

import dagster as dg
import pytest
from sqlalchemy.exc import IntegrityError

from tests.support.owners import elsewhere, write_heartbeat
from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime import instance as instance_module
from tokenuq_pipeline.runtime.dagster_internals import EngineEventData, run_job
from tokenuq_pipeline.runtime.instance import ACCELERATOR, PROCESS_TAG, prepare
from tokenuq_pipeline.runtime.launchers.ray_cluster import ClusterAway, NodeResources, RayCluster
from tokenuq_pipeline.runtime.owners import FOLDER, Owner
from tokenuq_pipeline.runtime.processes import process_name

pytestmark = pytest.mark.slow


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path / "toy")


@pytest.fixture
def instance(toy):
    with toy.instance() as instance:
        yield instance


def slots(instance):
    return {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}


def create_run(toy, instance, status=dg.DagsterRunStatus.STARTED, **tags):
    return instance.create_run_for_job(toy.defs().resolve_job_def(STUDY), tags=tags, status=status)


def hold_slot(instance, run):
    assert instance.event_log_storage.claim_concurrency_slot(ACCELERATOR, run.run_id, "step").is_claimed


def holders(instance):
    return instance.event_log_storage.get_concurrency_info(ACCELERATOR).active_run_ids


def test_one_slot_by_default_unless_the_user_or_the_variable_sets_another(toy, instance):
    assert prepare(instance, toy.store.home, {}) == ["pool accelerator: 1 slot"] and slots(instance) == {ACCELERATOR: 1}
    instance.event_log_storage.set_concurrency_slots(ACCELERATOR, 4)
    assert prepare(instance, toy.store.home, {}) == [] and slots(instance) == {ACCELERATOR: 4}
    assert prepare(instance, toy.store.home, {"TOKENUQ_ACCELERATOR_SLOTS": "2"}) == ["pool accelerator: 2 slots"]
    assert slots(instance) == {ACCELERATOR: 2}


def test_of_several_first_starts_at_once_each_finds_the_pool(toy, instance, monkeypatch):
    storage = instance.event_log_storage
    real = storage.set_concurrency_slots

    def insert_after_another(*arguments):
        monkeypatch.setattr(storage, "set_concurrency_slots", real)
        real(*arguments)
        raise IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed"))

    monkeypatch.setattr(storage, "set_concurrency_slots", insert_after_another)
    assert prepare(instance, toy.store.home, {}) == [] and slots(instance) == {ACCELERATOR: 1}


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_a_number_of_slots_must_be_a_positive_integer(toy, instance, text):
    with pytest.raises(InputError, match="TOKENUQ_ACCELERATOR_SLOTS: must be a positive integer"):
        prepare(instance, toy.store.home, {"TOKENUQ_ACCELERATOR_SLOTS": text})


def test_a_run_of_a_dead_process_is_closed_and_its_slot_is_freed(toy, instance):
    prepare(instance, toy.store.home, {})
    dead, alive = (
        create_run(toy, instance, **{PROCESS_TAG: "1-1"}),
        create_run(toy, instance, **{PROCESS_TAG: process_name()}),
    )
    hold_slot(instance, dead)
    queued = instance.event_log_storage.claim_concurrency_slot(ACCELERATOR, dead.run_id, "another step")
    assert not queued.is_claimed
    done = prepare(instance, toy.store.home, {})
    assert len(done) == 2 and all(dead.run_id[:8] in line for line in done)
    assert instance.get_run_by_id(dead.run_id).status == dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(alive.run_id).status == dg.DagsterRunStatus.STARTED
    assert not holders(instance)
    assert not instance.event_log_storage.get_concurrency_info(ACCELERATOR).pending_steps


def test_a_run_that_was_being_cancelled_counts_as_cancelled(toy, instance):
    run = create_run(toy, instance, dg.DagsterRunStatus.CANCELING, **{PROCESS_TAG: "1-1"})
    prepare(instance, toy.store.home, {})
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.CANCELED


@pytest.mark.slow
def test_runs_without_tag_are_judged_by_the_process_in_their_log(toy, instance, monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    runs = {pid: create_run(toy, instance) for pid in (gone.pid, os.getpid())}
    untold = create_run(toy, instance)
    for pid, run in runs.items():
        instance.report_engine_event(f"Executing steps in process (pid: {pid})", run, EngineEventData.in_process(pid))

    def statuses():
        prepare(instance, toy.store.home, {})
        return [instance.get_run_by_id(run.run_id).status.value for run in (*runs.values(), untold)]

    # Its process may be in another container, about to record itself.
    assert statuses() == ["STARTED", "STARTED", "STARTED"]
    monkeypatch.setattr(instance_module, "UNTAGGED_S", 0.0)
    assert statuses() == ["FAILURE", "STARTED", "STARTED"]


def test_a_run_that_nobody_goes_on_launching_is_marked_once_it_is_silent_for_long(toy, instance, monkeypatch):
    # Its launcher was killed before a process of the run existed: no event names one.
    run = create_run(toy, instance, status=dg.DagsterRunStatus.STARTING)
    instance.report_engine_event("Launching the run", run)

    def status():
        prepare(instance, toy.store.home, {})
        return instance.get_run_by_id(run.run_id).status.value

    assert status() == "STARTING"
    monkeypatch.setattr(instance_module, "UNTAGGED_S", 0.0)
    assert status() == "FAILURE"


def test_a_run_elsewhere_is_judged_by_its_heartbeat_in_the_store(toy, instance):
    prepare(instance, toy.store.home, {})
    run = create_run(toy, instance, **{PROCESS_TAG: str(elsewhere())})
    hold_slot(instance, run)
    # Without heartbeat, the run may use another store.
    for age, status in ((None, "STARTED"), (59, "STARTED"), (61, "FAILURE")):
        if age is not None:
            write_heartbeat(elsewhere(), toy.store.home, age=age)
        prepare(instance, toy.store.home, {})
        assert instance.get_run_by_id(run.run_id).status.value == status
    assert not holders(instance)


def test_a_suspended_run_keeps_no_slot_and_is_not_ended(toy, instance):
    prepare(instance, toy.store.home, {})
    parent = Owner.parse(str(Owner.current()).replace(process_name(), process_name(os.getppid())))
    run = create_run(toy, instance, **{PROCESS_TAG: str(parent)})
    hold_slot(instance, run)
    write_heartbeat(parent, toy.store.home, age=59)
    assert prepare(instance, toy.store.home, {}) == []
    write_heartbeat(parent, toy.store.home, age=61)
    assert prepare(instance, toy.store.home, {}) == [f"slots of run {run.run_id[:8]} freed: it is suspended"]
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED and not holders(instance)


def test_a_run_records_its_process_when_its_executor_starts(toy, instance):
    """As runs from the UI do, which nobody has tagged."""
    job = toy.defs().resolve_job_def(STUDY).get_subset(asset_selection={dg.AssetKey(["models", "tiny"])})
    run = instance.create_run_for_job(job)
    list(run_job(job, run, instance))
    assert instance.get_run_by_id(run.run_id).is_success
    assert Owner.parse(instance.get_run_by_id(run.run_id).tags[PROCESS_TAG]) == Owner.current()
    assert not list((toy.store.home / FOLDER).iterdir())


@pytest.mark.slow
def test_the_command_line_waits_for_a_slot_and_says_so(toy, instance, capfd):
    prepare(instance, toy.store.home, {})
    other = create_run(toy, instance, **{PROCESS_TAG: process_name()})
    hold_slot(instance, other)

    def let_go():
        with toy.instance() as another:
            storage = another.event_log_storage
            deadline = time.monotonic() + 60
            while not storage.get_concurrency_info(ACCELERATOR).pending_step_count and time.monotonic() < deadline:
                time.sleep(0.1)
            storage.free_concurrency_slots_for_run(other.run_id)

    timer = threading.Thread(target=let_go)
    timer.start()
    assert run_study(toy.defs(), toy_config(ablations=["mle"]), STUDY, ["mle"], instance, toy.store) == 0
    timer.join()
    assert "waits for a slot of the pool accelerator: other runs use them all" in capfd.readouterr().out


@pytest.mark.parametrize(("nodes", "expected"), [(({"CPU": 8.0, "GPU": 4.0},) * 2, 8), (({"CPU": 3.0},), 3), (None, 1)])
def test_on_a_cluster_there_is_a_slot_for_each_device(toy, instance, monkeypatch, nodes, expected):
    """None: the cluster does not answer, and the number stays what it is."""

    def resources(cluster):
        if nodes is None:
            raise ClusterAway("no answer")
        return NodeResources(nodes)

    monkeypatch.setattr(RayCluster, "resources", resources)
    environment = {"TOKENUQ_LAUNCHER": "ray", "RAY_ADDRESS": "http://head:8265"}
    prepare(instance, toy.store.home, environment)
    assert slots(instance) == {ACCELERATOR: expected}
    prepare(instance, toy.store.home, environment | {"TOKENUQ_ACCELERATOR_SLOTS": "2"})
    assert slots(instance) == {ACCELERATOR: 2}
