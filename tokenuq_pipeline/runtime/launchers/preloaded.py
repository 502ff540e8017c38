"""Stages as forks of a process that has imported the libraries already (`tokenuq_ml/stages/preloaded.py`).

Whoever runs many stages, such as `tokenuq run`, starts it with `preloaded()`; every launcher below finds it by the
environment. A stage starts as a program of its own where there is none, where its environment is another one, and where
a GPU might be used, which a fork cannot use if a library has touched it before.
"""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokenuq_ml.stages.preloaded import MODULES, ForkRequest
from tokenuq_pipeline.runtime.processes import is_running

PRELOAD = "TOKENUQ_PRELOAD"
"""Environment variable: 0 starts each stage as a program of its own; 1 forks although there is a GPU."""
SOCKET = "TOKENUQ_PRELOADED_SOCKET"
"""Environment variable, set by `preloaded`: the socket."""
_OWN_OF_A_STEP = ("DAGSTER", "TOKENUQ_PRELOAD")
"""Beginnings of variables that differ between the steps of a run, and that no library reads when it is imported."""
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri")
KILLED = -9


@contextlib.contextmanager
def preloaded(environment: Mapping[str, str], modules: Sequence[str] = MODULES) -> Iterator[None]:
    """Let launchers fork their stages inside the context.

    Args:
        environment: of the stages.
        modules: what is imported.
    """
    if not _is_possible():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="tokenuq-preloaded-") as folder, socket.socket(socket.AF_UNIX) as listening:
        # The name says for which environment, so that a launcher with another one does not connect.
        place = Path(folder) / f"{_hash(environment)}.socket"
        listening.bind(str(place))
        listening.listen(64)
        read_end, write_end = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "tokenuq_ml.stages.preloaded", str(listening.fileno()), str(read_end), *modules],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listening.fileno(), read_end],
        )
        os.close(read_end)
        listening.close()
        os.environ[SOCKET] = str(place)
        try:
            yield
        finally:
            os.environ.pop(SOCKET, None)
            os.close(write_end)
            process.wait()


def start_forked(
    command: list[str], environment: Mapping[str, str], base: Mapping[str, str], descriptors: list[int]
) -> "ForkedStage | None":
    """Start a stage as a fork.

    Args:
        command: `python -m <module> <arguments>`.
        environment: of the stage.
        base: the part of it that does not depend on the stage.
        descriptors: stdout, stderr, the parent's pipe, and what else the stage holds open.

    Returns:
        The process, or None if it has to be started in another way.
    """
    place = Path(os.environ.get(SOCKET, ""))
    if place.name != f"{_hash(base)}.socket":
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(place))
        request = ForkRequest(command[2], command[3:], dict(environment), os.getcwd())
        request.send(connection, descriptors)
        return ForkedStage(connection)
    except (OSError, EOFError):
        connection.close()
        return None


class ForkedStage:
    """A stage that was forked elsewhere, as `subprocess.Popen` shows a child.

    Attributes:
        pid: of the fork, which leads its process group.
    """

    def __init__(self, connection: socket.socket):
        """Wait until the stage has started.

        Raises:
            EOFError: the server has gone.
        """
        self._connection, self._received = connection, b""
        self._code: int | None = None
        while (first := self._line()) is None:
            pass
        self.pid: int = first["pid"]
        connection.setblocking(False)

    def _line(self) -> dict[str, int] | None:
        """Return the next message of the server, if it is complete.

        Raises:
            BlockingIOError: nothing has come.
            EOFError: nothing more will.
        """
        if b"\n" not in self._received:
            if not (content := self._connection.recv(4096)):
                raise EOFError
            self._received += content
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            return None
        self._received = rest
        return json.loads(line)

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal that killed it; None while it runs."""
        if self._code is None:
            try:
                line = self._line()
            except BlockingIOError:
                return None
            except (EOFError, OSError):
                # The server was killed: nobody knows the code.
                line = None if is_running(self.pid) else {"code": KILLED}
            if line is not None:
                self._code = line["code"]
                self._connection.close()
        return self._code

    def wait(self) -> int:
        """Wait for the end, and return what `poll` does."""
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code


def _is_possible() -> bool:
    wish = os.environ.get(PRELOAD)
    if wish is not None:
        return wish != "0" and sys.platform == "linux"
    return sys.platform == "linux" and not any(map(os.path.exists, _GPUS))


def _hash(environment: Mapping[str, str]) -> str:
    kept = {name: value for name, value in environment.items() if not name.startswith(_OWN_OF_A_STEP)}
    return hashlib.sha256(json.dumps(sorted(kept.items())).encode()).hexdigest()[:16]
