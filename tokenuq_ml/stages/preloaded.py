"""A process that has imported PyTorch, transformers and PEFT, and is forked once for each stage.

Imports take some six seconds of a processor, as much as the training of a small student. A fork has them at once, and
starts as a program would: with its own session, environment, streams and descriptors, and with nothing that another
stage has changed. `multiprocessing`'s fork server has no place for these, and its children end with their parent
instead of writing a checkpoint. One process that made one student after the other would pass settings of libraries,
memory and crashes on to the next.

Each connection to the socket is one stage: a `ForkRequest` with descriptors comes in; the pid goes out, and at the end
the exit code.
"""

import contextlib
import gc
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from typing import Any

from tokenuq_ml.stages.parent_watch import PARENT_PIPE

MODULES = ("torch", "transformers.trainer", "peft")
"""What is imported before the forks. Not polars: its threads run from the import on, and a fork would not have them."""
HEADER = 8
"""Bytes that hold the length of a request."""
DESCRIPTORS = 16
"""More than a request brings."""


@dataclass(frozen=True)
class ForkRequest:
    """What a fork runs. Descriptors come along: stdout, stderr, the parent's pipe, and what else it holds open."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    """Current directory."""

    def send(self, connection: socket.socket, descriptors: list[int]) -> None:
        """Send the request."""
        content = json.dumps(asdict(self)).encode()
        # The descriptors travel with the first byte.
        socket.send_fds(connection, [len(content).to_bytes(HEADER, "big")], descriptors)
        connection.sendall(content)

    @classmethod
    def receive(cls, connection: socket.socket) -> tuple["ForkRequest", list[int]] | None:
        """Return the request and its descriptors; None if the other side has gone."""
        header, descriptors, _, _ = socket.recv_fds(connection, HEADER, DESCRIPTORS)
        content = bytearray()
        length = int.from_bytes(header, "big") if len(header) == HEADER else 0
        while len(content) < length and (more := connection.recv(length - len(content))):
            content += more
        if not content or len(content) < length:
            _close(descriptors)
            return None
        return cls(**json.loads(content)), descriptors


def main() -> None:
    """Serve.

    Arguments: descriptors of the listening socket and of a pipe whose other end the owner holds, and what to import.
    """
    listening, owner = (int(argument) for argument in sys.argv[1:3])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A terminal sends it to all; the owner ends this process when it has stopped its stages.
        signal.signal(number, signal.SIG_IGN)
    for module in sys.argv[3:]:
        __import__(module)
    # Otherwise the first collection of each fork would copy all of this process's memory.
    gc.collect()
    gc.freeze()
    if threading.active_count() > 1:
        sys.exit("a library has started a thread, which forks would not have")
    _Server(socket.socket(fileno=listening), owner).serve()


class _Server:
    def __init__(self, listening: socket.socket, owner: int):
        self._listening, self._owner, self._running = listening, owner, {}
        self._selector = selectors.DefaultSelector()
        woken, wake = os.pipe()
        for descriptor in (woken, wake):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._own = [owner, woken, wake, self._selector.fileno()]
        self._selector.register(listening, selectors.EVENT_READ, self._accept)
        self._selector.register(owner, selectors.EVENT_READ, self._end)
        self._selector.register(woken, selectors.EVENT_READ, self._reap)

    def serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _accept(self, listening: socket.socket) -> None:
        connection, _ = listening.accept()
        try:
            received = ForkRequest.receive(connection)
        except (OSError, ValueError, TypeError):
            received = None
        if received is None:
            connection.close()
            return
        request, descriptors = received
        pid = os.fork()
        if pid == 0:
            self._become(request, descriptors, connection)
        _close(descriptors)
        self._running[pid] = connection

    def _become(self, request: ForkRequest, descriptors: list[int], connection: socket.socket) -> None:
        """Turn this fork into the stage; does not return."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            connection.sendall(_line({"pid": os.getpid()}))
            for held in (connection, self._listening, *self._running.values()):
                held.close()
            _close(self._own)
            _set_process(request, descriptors)
            runpy.run_module(request.module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = _code_of(end.code)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)

    def _reap(self, woken: int) -> None:
        """Report the ends of forks."""
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            connection = self._running.pop(pid)
            with contextlib.suppress(OSError):
                connection.sendall(_line({"code": os.waitstatus_to_exitcode(status)}))
            connection.close()

    def _end(self, owner: int) -> None:
        """End with the owner. What runs watches its own parent."""
        if not os.read(owner, 1):
            os._exit(0)


def _set_process(request: ForkRequest, descriptors: list[int]) -> None:
    """Give the fork its streams, environment, arguments and folder."""
    out, err, parent, *_ = descriptors
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
    _close([nothing, out, err])
    # As `PYTHONUNBUFFERED` does at the start of an interpreter.
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = (
        _unbuffered(1, "strict"),
        _unbuffered(2, "backslashreplace"),
    )
    os.environ.clear()
    os.environ.update(request.environment)
    os.environ[PARENT_PIPE] = str(parent)
    os.chdir(request.folder)
    sys.argv = [request.module, *request.arguments]


def _unbuffered(descriptor: int, errors: str) -> io.TextIOWrapper:
    stream = open(descriptor, "wb", buffering=0, closefd=False)
    return io.TextIOWrapper(stream, encoding="utf-8", errors=errors, write_through=True)


def _code_of(code: Any) -> int:
    """Return the exit code that the interpreter would give."""
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1


def _line(content: dict[str, int]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


if __name__ == "__main__":
    main()
