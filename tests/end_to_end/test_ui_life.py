"""The UI ends with all its processes, whatever ends it, and runs under way write their checkpoints."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.dev_server import DevServer
from tests.support.paths import ROOT
from tests.support.processes import all_processes, wait_until
from tokenuq_pipeline.runtime.processes import is_running
from tokenuq_pipeline.ui import sessions

pytestmark = pytest.mark.heavy
MODEL = ["models", "tiny"]


class LivingServer(DevServer):
    """A UI with a run whose stage hangs."""

    def __init__(self, folder, **environment):
        self.behaviour = folder / "behaviour.json"
        self.behaviour.write_text(json.dumps({"hang": "models"}))
        super().__init__(folder, FAKE_STAGE=f"@{self.behaviour}", **environment)

    def start_run(self) -> str:
        """Launch the run, and wait until its stage works; remembers the stage and the session of the server."""
        run = self.launch(MODEL)
        pids = self.toy.store.home / ".checkpoints/models/tiny/pids"
        self.stage = [int(pid) for pid in self.wait(lambda: pids.exists() and pids.read_text().split())]
        (self.server,) = (
            pid
            for pid, _, command in all_processes()
            if "tokenuq_pipeline.ui.server" in command and self.url in command
        )
        assert len(sessions.members(self.server)) > 5
        return run

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def require_ended(self, run: str) -> None:
        """Nothing is left: no process, no listener; the stage has written its checkpoint."""
        wait_until(lambda: not sessions.members(self.server), 60)
        self.process.wait(10)
        assert not any(is_running(pid) for pid in self.stage)
        assert (self.toy.store.home / ".checkpoints/models/tiny/checkpoint").read_text() == "step 7"
        assert self.status(run) == "FAILURE"
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", self.port))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("whom", ["command", "server"])
def test_a_signal_ends_all_processes(tmp_path, number, whom):
    if whom == "server" and number in (signal.SIGINT, signal.SIGHUP):
        pytest.skip("nobody sends these to the server alone")
    with LivingServer(tmp_path) as server:
        run = server.start_run()
        os.kill(server.process.pid if whom == "command" else server.server, number)
        server.require_ended(run)
    if whom == "command" and number != signal.SIGKILL:
        assert server.process.returncode == 0 and f"{number.name}: ending the UI" in server.log.read_text()
        assert not (server.toy.folder / "dagster_home/ui.json").exists()


def test_the_end_of_the_daemon_ends_the_ui(tmp_path):
    with LivingServer(tmp_path) as server:
        run = server.start_run()
        for pid in sessions.members(server.server):
            if b"dagster._daemon" in sessions._command(pid):
                os.kill(pid, signal.SIGKILL)
        server.require_ended(run)
    assert server.process.returncode == 1 and "daemon ended" in server.log.read_text()


class Started(LivingServer):
    """The UI as a shell script or make starts it in the background, where SIGINT is ignored."""

    def __init__(self, folder, how: str):
        super().__init__(folder)
        self.how = how

    def __enter__(self) -> "Started":
        command = f"{sys.executable} -m tokenuq_pipeline.cli ui {' '.join(self.arguments)} --port {self.port}"
        if self.how == "make":
            makefile = self.folder / "Makefile"
            makefile.write_text(f"ui:\n\t{command} --with-parent\n")
            command = f"exec make -s -f {makefile} ui"
        script = f"trap '' INT; {command}" if self.how == "make" else f"{command} & echo $! > {self.folder}/pid; wait"
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", script], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.wait(lambda: self.graphql("{ version }"), 90)
        return self


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_background_of_a_shell(tmp_path, number):
    with Started(tmp_path, "shell") as server:
        run = server.start_run()
        os.kill(int((tmp_path / "pid").read_text()), number)
        server.require_ended(run)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_under_make(tmp_path, number):
    with Started(tmp_path, "make") as server:
        run = server.start_run()
        os.kill(server.process.pid, number)
        server.require_ended(run)


def test_the_next_ui_ends_what_the_kill_of_all_that_supervises_has_left(tmp_path):
    with LivingServer(tmp_path) as server:
        server.start_run()
        for pid in (server.process.pid, server.server):
            os.kill(pid, signal.SIGKILL)
        server.process.wait()
        time.sleep(1)
        assert sessions.members(server.server)
    port_free_at_once = server.port
    first = server.server
    with LivingServer(tmp_path) as server:
        assert not sessions.members(first) and "that a killed UI had left" in server.log.read_text()
        assert server.port != port_free_at_once


def test_a_second_ui_of_the_same_home_names_the_first(tmp_path):
    with LivingServer(tmp_path) as server:
        command = [sys.executable, "-m", "tokenuq_pipeline.cli", "ui", *server.arguments, "--port", "0"]
        second = subprocess.run(command, env=server.environment, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert second.stderr.startswith("error: ") and second.stderr.count("\n") == 1
        assert server.url in second.stderr and f"kill {server.process.pid}" in second.stderr


class DagsterDev(LivingServer):
    """`dagster dev` instead of our own command, as a script starts it in the background."""

    def __enter__(self) -> "DagsterDev":
        command = [sys.executable, "-m", "dagster", "dev", *self.arguments, "-h", "127.0.0.1", "-p", str(self.port)]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True, cwd=ROOT
            )
        self.wait(lambda: self.graphql("{ version }"), 120)
        return self

    def start_run(self) -> str:
        run = self.launch(MODEL)
        pids = self.toy.store.home / ".checkpoints/models/tiny/pids"
        self.stage = [int(pid) for pid in self.wait(lambda: pids.exists() and pids.read_text().split())]
        self.server = self.process.pid
        return run


def test_dagster_dev_ends_with_its_runs(tmp_path):
    with DagsterDev(tmp_path) as server:
        run = server.start_run()
        server.process.terminate()
        server.require_ended(run)
