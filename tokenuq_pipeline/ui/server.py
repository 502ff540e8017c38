"""The process that serves the UI: code servers and Dagster's daemon as children, the guarded webserver in itself.

As `dagster dev`, except that the webserver is behind the guard and that no process outlives the others. `supervisor.py`
starts it as the leader of a session, with the socket that it serves and the read end of a pipe, which ends when the
supervisor does.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import dagster as dg
from starlette.applications import Starlette

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.errors import InputError
from tokenuq_ml.redaction import hide, redact_output, redacted
from tokenuq_pipeline.runtime.dagster_internals import code_servers, web_app
from tokenuq_pipeline.runtime.instance import prepare
from tokenuq_pipeline.runtime.paths import store_home
from tokenuq_pipeline.ui import sessions
from tokenuq_pipeline.ui.adopt_shown import adopt_shown
from tokenuq_pipeline.ui.first_page import FirstPage
from tokenuq_pipeline.ui.graphql_requests import MAX_MESSAGE
from tokenuq_pipeline.ui.guard import Guard
from tokenuq_pipeline.ui.hosts import Hosts
from tokenuq_pipeline.ui.login import TOKEN_VARIABLE, Login

OWN_DEFINITIONS = "tokenuq_pipeline.definitions"
"""What a workspace file names, unless `tokenuq ui --workspace` gave another."""
USAGE = 2
DAEMON_ENDED = 1
GRACEFUL_S = 1
"""Seconds that answers under way have when the server ends; a page reconnects later anyway."""
HANGS_S = 3.0
"""Seconds after which a server that has not begun to stop hangs."""


def main() -> None:
    """Serve until a signal, the end of the supervisor or the end of the daemon. Arguments: see `supervisor.py`."""
    descriptor, pipe, workspace, url = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    os.set_inheritable(descriptor, False)
    os.set_inheritable(pipe, False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    redact_output()
    others = _Others()
    threading.Thread(target=_stop_with, args=(pipe, others), daemon=True, name="supervisor-watch").start()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    code = [0]
    try:
        with socket.socket(fileno=descriptor) as listening:
            _serve(listening, workspace, url, others, code)
    except InputError as error:
        _say(f"error: {error}")
        code[0] = USAGE
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        others.interrupt()
        others.wait()
    # Threads that still compute an answer have nobody to give it to.
    os._exit(code[0])


def endpoints_of(app: Starlette) -> set[str]:
    """Return the first parts of the paths that the application serves as anything but a page of the UI."""
    parts = {str(getattr(route, "path", "")).strip("/").partition("/")[0] for route in app.routes}
    return {part for part in parts if part and not part.startswith("{")}


class _Others:
    """The other processes of this session. They are interrupted once: a second SIGINT would cost runs a checkpoint."""

    def __init__(self) -> None:
        self._interrupted = False
        self.waiting = False

    def interrupt(self) -> None:
        """Interrupt all of them, unless that has been done."""
        if not self._interrupted:
            self._interrupted = True
            sessions.interrupt(os.getpid(), without=[os.getpid()])

    def wait(self) -> None:
        """Wait until they have ended; kill what does not."""
        self.waiting = True
        sessions.wait_or_kill(os.getpid(), [os.getpid()], _say)


def _serve(listening: socket.socket, workspace: Path, url: str, others: _Others, code: list[int]) -> None:
    """Start everything and serve; sets the exit code if the daemon ends by itself."""
    import uvicorn

    port = listening.getsockname()[1]
    hosts, login = Hosts.of(port, os.environ), Login.of(os.environ, port)
    # No child needs it, least of all the code of a user's Trainer.
    hide(os.environ.pop(TOKEN_VARIABLE, None))
    with dg.DagsterInstance.get() as instance:
        for line in prepare(instance, store_home()):
            _say(line)
        if OWN_DEFINITIONS in workspace.read_text():
            adopt_shown(instance, store_home(), _say)
        with (
            code_servers(instance, workspace) as shared,
            _daemon(shared, code),
            web_app(instance, shared) as app,
            # First of all, because Dagster would wait for the ends of runs.
            contextlib.ExitStack() as stack,
        ):
            stack.callback(others.interrupt)
            config = uvicorn.Config(
                Guard(FirstPage(app), hosts, login, endpoints_of(app)),
                log_level="warning",
                lifespan="off",
                # What a proxy says of the client's address and scheme is not needed, and anybody can write it.
                proxy_headers=False,
                server_header=False,
                ws_max_size=MAX_MESSAGE,
                timeout_graceful_shutdown=GRACEFUL_S,
            )
            asked = " (it asks for the token: add ?token=...)" if login else ""
            _say(f"UI on {url}{asked}; Ctrl-C ends it")
            uvicorn.Server(config).run([listening])


@contextlib.contextmanager
def _daemon(workspace: Path, code: list[int]) -> Iterator[None]:
    """Run Dagster's daemon: schedules, sensors, the queue. If it ends by itself, so does the UI."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "--workspace", str(workspace), "--log-level", "warning"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    stopping = threading.Event()

    def watch() -> None:
        process.wait()
        if not stopping.is_set():
            _say(f"error: Dagster's daemon ended with exit code {process.returncode}; the UI ends as well")
            code[0] = DAEMON_ENDED
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="daemon-watch").start()
    try:
        yield
    finally:
        stopping.set()


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _stop_with(pipe: int, others: _Others) -> None:
    """Stop this process when the other end of the pipe is closed, by the end of the supervisor."""
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(HANGS_S)
    if not others.waiting:
        # A server that hangs must not keep the port.
        others.interrupt()
        others.wait()
        os._exit(DAEMON_ENDED)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(escaped(redacted(line)), flush=True)


if __name__ == "__main__":
    main()
