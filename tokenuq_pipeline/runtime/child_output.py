"""What a child process reports: messages of Dagster Pipes, and its stdout and stderr. Both go through files."""

import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import dagster as dg

from tokenuq_pipeline.runtime.interrupts import hold_interrupts

TAIL_LINES = 30


class MessageFile(dg.PipesMessageReader):
    """Reads the child's messages from a file each time `pump` is called; no thread, so they stay in order.

    If the child dies while it writes a line, that line is skipped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: deque[str] = deque()
        self._rest = ""

    @contextlib.contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, Any]]:
        """Open the file, and tell the child its path."""
        self._path.touch()
        with open(self._path, encoding="utf-8") as file:
            self._file, self._handler = file, handler
            yield {"path": str(self._path)}

    def pump(self) -> Iterator[dict[str, Any]]:
        """Pass new messages on to Dagster, line by line; yield the payload of each custom message among them."""
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        self._lines += lines
        while self._lines:
            with contextlib.suppress(json.JSONDecodeError):
                message = json.loads(self._lines.popleft())
                with hold_interrupts():
                    self._handler.handle_message(message)
                if message["method"] == "report_custom_message":
                    yield message["params"]["payload"]

    def drain(self) -> None:
        """Pass new messages on to Dagster and ignore custom ones."""
        deque(self.pump(), maxlen=0)

    @property
    def expected_writer_count(self) -> int:
        """Return 1: one child writes. Dagster's own property is a preview and warns of that in every step."""
        return 1

    def no_messages_debug_text(self) -> str:
        """Return what Dagster logs if the child has sent no message."""
        return f"The child writes its messages to {self._path}."


class ChildOutput:
    """The child's stdout and stderr: files, whose content is copied to this process's streams for Dagster to capture.

    A child that outlives this process would die of a broken pipe; files have no such end.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = (folder / "stdout", folder / "stderr")

    def __enter__(self) -> "ChildOutput":
        self.stdout, self.stderr = (path.open("ab") for path in self._paths)
        # Dagster captures what Python's own streams write to.
        streams = (_descriptor(sys.stdout, 1), _descriptor(sys.stderr, 2))
        self._readers = [(path.open("rb"), descriptor) for path, descriptor in zip(self._paths, streams, strict=True)]
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdout, self.stderr, *(reader for reader, _ in self._readers)):
            file.close()

    def forward(self) -> None:
        """Copy new output to this process's streams."""
        for reader, descriptor in self._readers:
            with contextlib.suppress(OSError):
                while chunk := reader.read(1 << 16):
                    os.write(descriptor, chunk)

    def tail(self) -> str:
        """Return the last lines of stderr."""
        lines = self._paths[1].read_text(errors="replace").replace("\r", "\n").splitlines()
        return "\n".join(lines[-TAIL_LINES:])


def _descriptor(stream: TextIO, default: int) -> int:
    """Return the descriptor of a stream, or `default` if the stream has been replaced by one without any."""
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return default
