"""A stage ends when its parent dies or is silent, and before another process may work in its folders."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tokenuq_ml.stages.parent_watch import LEASE_SECONDS, PARENT_PIPE

pytestmark = pytest.mark.slow
LEASE_S = 0.8
CODE = """
import os, signal, time
from tokenuq_ml.stages.parent_watch import ParentWatch

def interrupted(*_):
    reason = "orphaned" if watch.orphaned.is_set() else "silent" if watch.silent.is_set() else "asked"
    os.write(1, reason.encode() + bytes([10]))
    if not {stubborn}:
        os._exit(7)

os.setpgrp()
signal.signal(signal.SIGINT, interrupted)
watch = ParentWatch.start()
os.write(1, b"ready" + bytes([10]))
while True:
    time.sleep(60)
"""


class Stage:
    """A process that watches this one, and reports how it is interrupted."""

    def __init__(self, stubborn: bool = False, lease_s: float | None = LEASE_S):
        read_end, self.pipe = os.pipe()
        environment = {**os.environ, PARENT_PIPE: str(read_end)}
        if lease_s:
            environment[LEASE_SECONDS] = str(lease_s)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE.format(stubborn=stubborn)],
            env=environment,
            pass_fds=[read_end],
            stdout=subprocess.PIPE,
            text=True,
        )
        os.close(read_end)
        assert self.process.stdout.readline() == "ready\n"

    def beat(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            os.write(self.pipe, b".")
            time.sleep(0.05)

    def end(self) -> tuple[str, int]:
        """Wait for the process; return what it said and its exit code."""
        said, _ = self.process.communicate(timeout=30)
        return said, self.process.returncode


@pytest.fixture
def start(request):
    stages = []

    def make(**options):
        stages.append(Stage(**options))
        return stages[-1]

    yield make
    for stage in stages:
        stage.process.kill()
        stage.process.wait()


def test_a_stage_of_a_silent_parent_is_interrupted(start):
    stage = start()
    stage.beat(2 * LEASE_S)
    assert stage.process.poll() is None
    assert stage.end() == ("silent\n", 7)


def test_a_stage_of_a_dead_parent_is_interrupted(start):
    stage = start(lease_s=None)
    os.close(stage.pipe)
    assert stage.end() == ("orphaned\n", 7)


@pytest.mark.parametrize("dies", [True, False])
def test_a_stage_that_goes_on_is_killed_when_another_may_take_its_lease(start, dies):
    stage = start(stubborn=True)
    if dies:
        os.close(stage.pipe)
    assert stage.end() == ("orphaned\n" if dies else "silent\n", -signal.SIGKILL)


def test_a_stage_that_was_suspended_with_its_parent_is_killed_at_its_wake_up(start):
    """It writes no checkpoint: another training may use the folder by then."""
    stage = start()
    stage.process.send_signal(signal.SIGSTOP)
    time.sleep(LEASE_S * 1.5)
    stage.process.send_signal(signal.SIGCONT)
    assert stage.end() == ("", -signal.SIGKILL)
