"""Whether steps of a run have processes of their own, how many, and how these start."""

import os
import signal
import subprocess
import sys

import pytest

from tests.support import counted_job
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.launchers.choice import several_models_fit
from tokenuq_pipeline.runtime.step_processes import STEPS, passing_on_interrupts, steps_at_once, steps_side_by_side

RAY = {"TOKENUQ_LAUNCHER": "ray"}
TWO = {"TOKENUQ_ACCELERATOR_SLOTS": "2", "CUDA_VISIBLE_DEVICES": ""}
NONE = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    "environment, expected",
    [
        (NONE, False),
        (TWO, True),
        (RAY, True),
        (RAY | {"TOKENUQ_ACCELERATOR_SLOTS": "1"}, False),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, True),
        (RAY | {"TOKENUQ_EXECUTOR": "in_process"}, False),
        (NONE | {"TOKENUQ_EXECUTOR": "multiprocess"}, True),
    ],
)
def test_steps_have_processes_where_several_models_fit_or_a_person_says_so(environment, expected):
    assert steps_side_by_side(several_models_fit(environment), environment) is expected


def test_an_unknown_executor_is_refused():
    with pytest.raises(InputError, match="unknown executor 'celery'; allowed: in_process, multiprocess"):
        steps_side_by_side(True, {"TOKENUQ_EXECUTOR": "celery"})


def test_all_models_that_fit_have_a_step_and_a_machine_has_no_more_than_its_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert steps_at_once(NONE) == 4 and steps_at_once(TWO | {"TOKENUQ_ACCELERATOR_SLOTS": "6"}) == 6
    assert steps_at_once(RAY) == STEPS
    monkeypatch.setattr(os, "cpu_count", lambda: 192)
    assert steps_at_once(NONE) == STEPS


@pytest.mark.parametrize(
    "command, own",
    [("from multiprocessing.forkserver import main; ", True), ("", False)],
    ids=["the server of steps", "any other process"],
)
def test_only_the_server_of_steps_leaves_the_process_group(command, own):
    code = command + ("import os, tokenuq_pipeline.runtime.step_server; print(os.getpgrp() == os.getpid())")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(own)


@pytest.mark.slow
def test_steps_find_the_job_that_the_process_they_are_forked_from_has_built(tmp_path):
    """Built in each step, a study of 1,400 assets takes 20 s per step."""
    built = tmp_path / "built"
    environment = {**os.environ, counted_job.COUNT: str(built)}
    subprocess.run([sys.executable, "-m", "tests.support.counted_job"], env=environment, check=True)
    steps = {(tmp_path / name).read_text() for name in ("a", "b", "c")}
    assert len(steps) == 3 and not steps & set(built.read_text().split())


def test_the_first_interrupt_is_the_runs_and_later_ones_reach_its_steps(monkeypatch):
    sent, handled = [], []

    class Child:
        pid = 4321

    monkeypatch.setattr("multiprocessing.active_children", lambda: [Child])
    real = os.kill
    monkeypatch.setattr(
        os, "kill", lambda pid, number: sent.append((pid, number)) if pid == 4321 else real(pid, number)
    )
    before = signal.signal(signal.SIGINT, lambda number, frame: handled.append(number))
    try:
        with passing_on_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            assert handled == [signal.SIGINT] and not sent
            os.kill(os.getpid(), signal.SIGINT)
            assert len(handled) == 2 and sent == [(4321, signal.SIGINT)]
        os.kill(os.getpid(), signal.SIGINT)
        assert len(handled) == 3 and len(sent) == 1
    finally:
        signal.signal(signal.SIGINT, before)
