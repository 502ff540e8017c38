"""The file through which a child process sends messages of Dagster Pipes to its parent.

Dagster's own reader of a file (`PipesFileMessageReader`) has a thread, in which messages reach the event log out of
order with what the step does, and its file grows without bound.
"""

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import dagster as dg
from dagster_pipes import PIPES_PROTOCOL_VERSION_FIELD, PipesMessage

from tokenuq_pipeline.runtime.child_output import Allowance
from tokenuq_pipeline.runtime.interrupts import hold_interrupts

LOG_CHARACTERS = 2**16
"""Characters of a log message that are kept."""
LOG_BURST, LOGS_PER_S = 2_000, 10
"""Log messages that reach Dagster's event log, each some milliseconds and a kilobyte there."""
FILE_BYTES = 2**24
"""Size at which the child is given a new file."""
RETIRED_S = 5.0
"""Seconds that a message may take to be written: so long the earlier file is read after the new one has begun."""


class MessageFile(dg.PipesMessageReader):
    """Reads the child's messages from a file each time `pump` is called; no thread, so they stay in order.

    If the child dies while it writes a line, that line is skipped. Results are never left out; log messages are, if
    there are thousands.

    Args:
        path: the file.
        is_shared: a child on another machine writes it. It is then opened for each look, which makes a network file
            system ask its server, and is not replaced: whoever follows the child later reads it from the beginning.
    """

    def __init__(self, path: Path, is_shared: bool = False) -> None:
        self._path, self._is_shared = path, is_shared
        self._logs = Allowance(LOG_BURST, LOGS_PER_S)
        self._left_out = 0

    @contextlib.contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, Any]]:
        """Open the file, and tell the child its path."""
        self._path.touch()
        self._handler, self._file = handler, _Lines(self._path, self._is_shared)
        self._earlier: _Lines | None = None
        try:
            yield {"path": str(self._path)}
        finally:
            for file in (self._file, self._earlier):
                if file is not None:
                    file.close()

    def pump(self) -> Iterator[dict[str, Any]]:
        """Pass new messages on to Dagster, line by line; yield the payload of each custom message among them."""
        for line in self._lines():
            message = _parsed(line)
            if message is None or not self._is_kept(message):
                continue
            with hold_interrupts():
                self._handler.handle_message(cast(PipesMessage, message))
            if message["method"] == "report_custom_message":
                yield message["params"]["payload"]

    @property
    def position(self) -> int:
        """Return how many bytes have been read."""
        return self._file.position

    def drain(self) -> None:
        """Pass new messages on to Dagster and ignore custom ones."""
        for _ in self.pump():
            pass

    def _lines(self) -> Iterator[bytes]:
        if self._earlier is not None:
            yield from self._earlier.new()
            if time.monotonic() - self._earlier.retired > RETIRED_S:
                self._earlier.close()
                self._earlier = None
        yield from self._file.new()
        if self._file.position > FILE_BYTES and self._earlier is None and not self._is_shared:
            self._replace_file()

    def _replace_file(self) -> None:
        """Give the child a new file: it opens the file by its name for each message."""
        earlier = self._path.with_name(f"{self._path.name}.earlier")
        os.replace(self._path, earlier)
        self._path.touch()
        self._file.retire(earlier)
        self._earlier, self._file = self._file, _Lines(self._path)

    def _is_kept(self, message: dict[str, Any]) -> bool:
        """Return whether a message is passed on; log messages are cut, and counted."""
        if message["method"] != "log":
            return True
        params = message["params"]
        text = params["message"] = str(params.get("message"))
        if len(text) > LOG_CHARACTERS:
            params["message"] = f"{text[:LOG_CHARACTERS]} ... ({len(text):,} characters)"
        if self._logs.take(1):
            return True
        self._left_out += 1
        if self._left_out > 1:
            return False
        # Said once, in place of the first that is left out.
        params["message"] = (
            f"more than {LOG_BURST:,} log messages, and more than {LOGS_PER_S} per second: further ones are left out"
        )
        params["level"] = "WARNING"
        return True

    @property
    def expected_writer_count(self) -> int:
        """Return 1: one child writes. Dagster's own property is a preview and warns of that in every step."""
        return 1

    def no_messages_debug_text(self) -> str:
        """Return what Dagster logs if the child has sent no message."""
        return f"The child writes its messages to {self._path}."


class _Lines:
    """A file that grows, line by line."""

    def __init__(self, path: Path, reopens: bool = False):
        self._file: BinaryIO = path.open("rb")
        self._reopened = path if reopens else None
        self._path: Path | None = None
        self._rest: list[bytes] = []
        # A caller that stops in the middle finds the other lines of a chunk here.
        self._complete: deque[bytes] = deque()
        self.position, self.retired = 0, 0.0

    def new(self) -> Iterator[bytes]:
        """Yield the complete lines since the last call."""
        if self._reopened is not None:
            self._file.close()
            self._file = self._reopened.open("rb")
            self._file.seek(self.position)
        while True:
            while self._complete:
                yield self._complete.popleft()
            chunk = self._file.read(1 << 20)
            if not chunk:
                return
            self.position += len(chunk)
            first, *others = chunk.split(b"\n")
            self._rest.append(first)
            for other in others:
                self._complete.append(b"".join(self._rest))
                self._rest = [other]

    def retire(self, path: Path) -> None:
        """Delete the file, under its new name, when it is closed."""
        self._path, self.retired = path, time.monotonic()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the message in a line; None if there is none.

    On a full disk a message is cut, and the next one follows it in the same line.
    """
    for start in (0, line.rfind(f'{{"{PIPES_PROTOCOL_VERSION_FIELD}"'.encode())):
        with contextlib.suppress(ValueError):
            message = json.loads(line[max(start, 0) :])
            if isinstance(message, dict) and isinstance(message.get("params"), dict | None) and "method" in message:
                return message
    return None
