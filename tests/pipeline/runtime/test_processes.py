"""Whether a process runs, since when, and the name that only it has."""

import os
import subprocess
import sys
import time

import pytest

from tokenuq_pipeline.runtime.processes import (
    ZOMBIE,
    is_alive,
    is_running,
    peak_memory,
    process_name,
    process_stat,
    started_at,
)

PARENT = """
import subprocess, sys
code = "block = bytearray(110 * 2**20); print('ready', flush=True); input()"
child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print("ready", flush=True)
input()
"""


@pytest.fixture
def child():
    """A process that waits; ended at the latest when the test ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_running_process(child):
    stat = process_stat(child.pid)
    assert stat.parent == os.getpid() and stat.state != ZOMBIE
    assert is_running(child.pid) and is_alive(process_name(child.pid)) and is_alive(process_name())
    assert abs(started_at(child.pid) - time.time()) < 10


def test_the_peak_of_memory_includes_that_of_children():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        assert 100 * 2**20 < peak_memory(parent.pid) < 200 * 2**20 and peak_memory(2**30) is None
        parent.kill()


def test_a_zombie_does_not_run(child):
    name = process_name(child.pid)
    child.kill()
    # Waits for the end without asking for the exit code.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_stat(child.pid).state == ZOMBIE
    assert not is_running(child.pid) and not is_alive(name)


def test_an_ended_process(child):
    name = process_name(child.pid)
    child.communicate(b"\n")
    assert not is_running(child.pid) and not is_alive(name)
    assert process_stat(child.pid) is None and started_at(child.pid) is None


def test_a_name_is_not_that_of_a_later_process_with_the_same_pid(child):
    pid, _, started = process_name(child.pid).partition("-")
    assert not is_alive(f"{pid}-{int(started) - 1}")
    assert not is_alive("no name")
