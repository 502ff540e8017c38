"""A stage that is forked starts, behaves and ends as a program of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import wait_until
from tokenuq_pipeline.runtime.launchers.preloaded import KILLED, PRELOAD, SOCKET, preloaded, start_forked

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux")]
BASE = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PRELOAD, "1")
        with preloaded(BASE, ["json"]):
            yield Path(os.environ[SOCKET])


class Program:
    """The program as a fork, or started."""

    def __init__(self, folder, end, forked=True, **environment):
        self.found, self.out, self.err = (folder / name for name in ("found.json", "out", "err"))
        command = [sys.executable, "-m", "tests.support.forked_program", str(self.found), end]
        read_end, self.pipe = os.pipe()
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            if forked:
                held = [out.fileno(), err.fileno(), read_end]
                self.process = start_forked(command, {**BASE, **environment}, BASE, held)
            else:
                self.process = subprocess.Popen(
                    command,
                    env={**BASE, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                    pass_fds=[read_end],
                )
        os.close(read_end)

    def what_it_found(self):
        wait_until(lambda: self.found.exists() and self.found.read_text().endswith("}"), 20)
        return json.loads(self.found.read_text())


@pytest.mark.parametrize("end", ["0", "7", "no such file", "bug"])
def test_a_fork_is_what_a_program_is(server, end, tmp_path):
    (tmp_path / "forked").mkdir(), (tmp_path / "started").mkdir()
    forked = Program(tmp_path / "forked", end, FORK_A="1")
    started = Program(tmp_path / "started", end, forked=False, FORK_A="1")
    assert forked.process.wait() == started.process.wait() == {"0": 0, "7": 7}.get(end, 1)
    assert forked.what_it_found() == started.what_it_found()
    assert forked.what_it_found()["environment"] == {"FORK_A": "1"} and forked.what_it_found()["leads"]
    assert forked.out.read_text() == started.out.read_text() == "said\n"
    # The traceback of a fork also names what has forked it.
    last = [process.err.read_text().splitlines()[-1] for process in (forked, started)]
    assert last[0] == last[1] and forked.process.poll() == forked.process.wait()


def test_forks_run_side_by_side_and_end_by_signals(server, tmp_path):
    programs = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        programs.append(Program(tmp_path / name, "hang", FORK_NAME=name))
    assert [one.what_it_found()["environment"]["FORK_NAME"] for one in programs] == ["a", "b", "c"]
    # No fork has what another one has open, or has changed.
    assert len({one.what_it_found()["descriptors"] for one in programs}) == 1
    assert not any(one.what_it_found()["left"] for one in programs)
    assert [one.process.poll() for one in programs] == [None] * 3
    # Its output is written at once.
    wait_until(lambda: programs[0].err.read_text() == "warned\n", 5)
    for program, number in zip(programs, (signal.SIGKILL, signal.SIGTERM, signal.SIGINT), strict=True):
        os.killpg(program.process.pid, number)
    assert [one.process.wait() for one in programs] == [-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT]


def test_another_environment_has_no_forks(server, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "tests.support.forked_program", str(tmp_path / "found"), "0"]
    assert start_forked(command, BASE, {**BASE, "OMP_NUM_THREADS": "7"}, [1, 2, 0]) is None
    monkeypatch.delenv(SOCKET)
    assert start_forked(command, BASE, BASE, [1, 2, 0]) is None
    assert not (tmp_path / "found").exists()


def test_the_server_ends_with_its_owner_and_stages_without_it_are_lost(tmp_path, monkeypatch):
    monkeypatch.setenv(PRELOAD, "1")
    with preloaded(BASE, ["json"]):
        program = Program(tmp_path, "hang")
        server = int(Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(server, signal.SIGKILL)
        assert program.what_it_found() and program.process.poll() is None
        os.killpg(program.process.pid, signal.SIGTERM)
        assert program.process.wait() == KILLED
        # The next stage is started in the other way.
        assert start_forked([sys.executable, "-m", "x"], BASE, BASE, [1, 2, 0]) is None
    assert SOCKET not in os.environ
    monkeypatch.setenv(PRELOAD, "0")
    with preloaded(BASE, ["json"]):
        assert SOCKET not in os.environ
