"""The process that a person starts and ends: it takes the port, starts the server, and ends everything with itself.

It loads no Dagster, so that it answers signals at once. A signal, or its own end by SIGKILL, ends the server, which
ends its children; what does not end in time is killed.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.paths import checkout
from tokenuq_pipeline.ui import record, sessions
from tokenuq_pipeline.ui.port import listen

STOP_S = sessions.ORDERLY_S + 3.0
"""Seconds after a signal when everything but runs that write checkpoints has ended, or is killed."""
POLL_S = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WORKSPACE = """\
load_from:
  - python_module:
      module_name: tokenuq_pipeline.definitions
      working_directory: {folder}
      location_name: tokenuq
"""


class _Stop(Exception):
    """A signal, or the end of the process that started this one."""


def supervise(
    host: str, port: int, workspace: Path | None, home: Path, with_parent: bool, say: Callable[[str], None]
) -> int:
    """Serve the UI until a signal; return the exit code.

    Args:
        host: the address to listen on.
        port: 0: any free one.
        workspace: a workspace file of Dagster; None: tokenuq's definitions.
        home: Dagster's home.
        with_parent: end when the process that started this one ends, or has been told to.
        say: takes a line for the person.

    Raises:
        InputError: the port is in use, or another UI serves this home.
    """
    if (other := record.running(home)) is not None:
        raise InputError(
            f"a UI of {home} already runs on {other.url} (process {other.supervisor.pid}): use it, or end it with "
            f"`kill {other.supervisor.pid}`"
        )
    if ended := record.end_orphans(home, say):
        say(f"ended {ended} process{'es' if ended > 1 else ''} that a killed UI had left")
    with listen(host, port) as listening, _workspace(workspace) as file:
        url = _address(host, listening.getsockname()[1])
        stop = _Signals(with_parent)
        server, pipe = _start(listening, file, url)
        try:
            record.write(home, url, server.pid)
            # The server alone holds the port now: it is free as soon as the server is gone.
            listening.close()
            while server.poll() is None:
                stop.check()
                time.sleep(POLL_S)
            if server.returncode < 0:
                say(f"error: the server was killed by {signal.Signals(-server.returncode).name}: ending the UI")
        except _Stop as reason:
            say(f"{reason}: ending the UI")
        finally:
            _end(server, say)
            os.close(pipe)
            record.remove(home)
    return 0 if stop.came else max(server.returncode, 1)


def _start(listening: socket.socket, workspace: Path, url: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server as the leader of a session; return it, and the end of the pipe that must stay open."""
    read_end, write_end = os.pipe()
    descriptor = listening.fileno()
    arguments = [str(descriptor), str(read_end), str(workspace), url]
    # In its own session: Ctrl-C in a terminal reaches this process only, which ends the others in order.
    server = subprocess.Popen(
        [sys.executable, "-m", "tokenuq_pipeline.ui.server", *arguments],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=[descriptor, read_end],
    )
    os.close(read_end)
    return server, write_end


def _end(server: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
    """End the server and everything that it started. A second signal kills at once."""
    if server.poll() is not None:
        # It was killed, or it ended by itself: then nothing is left of its session.
        sessions.interrupt(server.pid)
    else:
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_S)
    sessions.wait_or_kill(server.pid, [], say)
    server.wait()


class _Signals:
    """What ends the UI: signals, and the end of the parent.

    Python delivers signals to handlers between two instructions; `check` raises where that is safe.
    """

    def __init__(self, with_parent: bool) -> None:
        self._received: signal.Signals | None = None
        self._parent = os.getppid() if with_parent else None
        self._caught = _caught_signals(self._parent)
        for number in SIGNALS:
            # A shell lets the processes that it starts in the background ignore SIGINT, and make passes that on.
            # `nohup` asks to ignore SIGHUP, and means it.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)

    @property
    def came(self) -> bool:
        """Whether a person asked for the end."""
        return self._received is not None

    def check(self) -> None:
        """Raise `_Stop` if the UI is to end."""
        if self._received is not None:
            raise _Stop(self._received.name)
        if self._parent is None:
            return
        if os.getppid() != self._parent:
            raise _Stop("the process that started the UI has ended")
        if self._caught - _caught_signals(self._parent):
            # GNU make takes SIGINT and SIGHUP for itself alone, stops catching them, and waits for its children.
            raise _Stop("make was interrupted")

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self._received = signal.Signals(number)


def _caught_signals(pid: int | None) -> set[int]:
    """Return those of `SIGNALS` that a process has handlers for."""
    return sessions.caught_signals(pid) & set(SIGNALS) if pid is not None else set()


@contextlib.contextmanager
def _workspace(given: Path | None) -> Iterator[Path]:
    """Yield a workspace file."""
    if given is not None:
        if not given.is_file():
            raise InputError(f"{given}: no such workspace file; leave --workspace out, or name one")
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="tokenuq_ui_") as folder:
        file = Path(folder) / "workspace.yaml"
        file.write_text(WORKSPACE.format(folder=json.dumps(str(checkout()))))
        yield file


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
