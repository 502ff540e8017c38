"""Instance maintenance: dead runs end, their slots are freed, and the environment sets the number of slots."""

import os
import subprocess
import sys
import threading
import time

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.dagster_internals import EngineEventData
from tokenuq_pipeline.runtime.instance import ACCELERATOR, PROCESS_TAG, prepare
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


def test_one_slot_by_default_unless_the_user_or_the_variable_sets_another(instance):
    assert prepare(instance, {}) == ["pool accelerator: 1 slot"] and slots(instance) == {ACCELERATOR: 1}
    instance.event_log_storage.set_concurrency_slots(ACCELERATOR, 4)
    assert prepare(instance, {}) == [] and slots(instance) == {ACCELERATOR: 4}
    assert prepare(instance, {"TOKENUQ_ACCELERATOR_SLOTS": "2"}) == ["pool accelerator: 2 slots"]
    assert slots(instance) == {ACCELERATOR: 2}


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_a_number_of_slots_must_be_a_positive_integer(instance, text):
    with pytest.raises(InputError, match="TOKENUQ_ACCELERATOR_SLOTS: must be a positive integer"):
        prepare(instance, {"TOKENUQ_ACCELERATOR_SLOTS": text})


def test_a_run_of_a_dead_process_is_closed_and_its_slot_is_freed(toy, instance):
    prepare(instance, {})
    dead, alive = (
        create_run(toy, instance, **{PROCESS_TAG: "1-1"}),
        create_run(toy, instance, **{PROCESS_TAG: process_name()}),
    )
    hold_slot(instance, dead)
    queued = instance.event_log_storage.claim_concurrency_slot(ACCELERATOR, dead.run_id, "another step")
    assert not queued.is_claimed
    done = prepare(instance, {})
    assert len(done) == 2 and all(dead.run_id[:8] in line for line in done)
    assert instance.get_run_by_id(dead.run_id).status == dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(alive.run_id).status == dg.DagsterRunStatus.STARTED
    assert not holders(instance)
    assert not instance.event_log_storage.get_concurrency_info(ACCELERATOR).pending_steps


def test_a_run_that_was_being_cancelled_counts_as_cancelled(toy, instance):
    run = create_run(toy, instance, dg.DagsterRunStatus.CANCELING, **{PROCESS_TAG: "1-1"})
    prepare(instance, {})
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.CANCELED


@pytest.mark.slow
def test_runs_of_the_ui_are_judged_by_the_process_in_their_log(toy, instance):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    runs = {pid: create_run(toy, instance) for pid in (gone.pid, os.getpid())}
    untold = create_run(toy, instance)
    for pid, run in runs.items():
        instance.report_engine_event(f"Executing steps in process (pid: {pid})", run, EngineEventData.in_process(pid))
    prepare(instance, {})
    status = {run.run_id: instance.get_run_by_id(run.run_id).status.value for run in (*runs.values(), untold)}
    assert list(status.values()) == ["FAILURE", "STARTED", "STARTED"]


@pytest.mark.slow
def test_the_command_line_waits_for_a_slot_and_says_so(toy, instance, capfd):
    prepare(instance, {})
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
