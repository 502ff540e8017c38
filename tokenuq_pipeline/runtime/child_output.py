"""What a child process reports: messages of Dagster Pipes, and its stdout and stderr. Both go through files.

Both are bounded, whatever the child writes: of messages in `message_file.py`, of output here.
"""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from tokenuq_ml.redaction import redacted

POLL_S = 0.05
BUSY_BYTES, BUSY_POLL_S = 2**20, 0.001
"""New output from which the next look comes sooner: a child writes a gigabyte per second."""
TAIL_LINES = 30
TAIL_BYTES = 2**16
"""The end of a stream that is kept for error messages, however much was written."""
LINE_CHARACTERS = 2_000
"""Characters of a line of the tail that are shown."""
BURST_BYTES, BYTES_PER_S = 2**22, 256
"""Output that is forwarded: four megabytes at once, and then some 20 megabytes per day."""
FILE_BYTES = 2**24
"""Size at which a file that has been forwarded is emptied."""


class Allowance:
    """How much may pass: a burst, which grows again by a rate.

    Args:
        burst: the most that passes at once.
        per_s: what is added per second.
    """

    def __init__(self, burst: float, per_s: float):
        self._burst, self._per_s, self._left, self._seen = burst, per_s, float(burst), time.monotonic()

    def take(self, wanted: int) -> int:
        """Return how much of `wanted` may pass, and count it."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._seen) * self._per_s)
        self._seen = now
        taken = min(wanted, int(self._left))
        self._left -= taken
        return taken


class ChildOutput:
    """The child's stdout and stderr: files, whose content is copied to this process's streams for Dagster to capture.

    A child that outlives this process would die of a broken pipe; files have no such end. A thread copies, so that the
    files stay small while this process is busy, too: what a child writes in a moment is all that they hold.

    Args:
        folder: of the files.
        is_shared: a child on another machine writes them. They are then opened for each look, and never emptied.
    """

    def __init__(self, folder: Path, is_shared: bool = False) -> None:
        self._folder, self._is_shared = folder, is_shared

    def __enter__(self) -> "ChildOutput":
        # Dagster captures what Python's own streams write to.
        self._streams = (
            _Stream(self._folder / "stdout", _descriptor(sys.stdout, 1), self._is_shared),
            _Stream(self._folder / "stderr", _descriptor(sys.stderr, 2), self._is_shared),
        )
        self.stdout, self.stderr = (stream.writer for stream in self._streams)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._copy, daemon=True, name="child-output")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        for stream in self._streams:
            stream.close()

    def _copy(self) -> None:
        pause = POLL_S
        while not self._ended.wait(pause):
            copied = sum([stream.forward() for stream in self._streams])
            pause = POLL_S if copied < BUSY_BYTES else BUSY_POLL_S

    def finish(self) -> None:
        """Copy the rest, once the child has ended. What the child left out comes with its end."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        for stream in self._streams:
            stream.forward()
            stream.forward_end()

    def tail(self) -> str:
        """Return the last lines of stderr."""
        return shown_tail(self._streams[1].tail)

    def end_of_stderr(self) -> str:
        """Return the end of stderr, of which `tail` shows the last lines."""
        return self._streams[1].tail.decode(errors="replace")


class _Stream:
    """One stream of a child: the file that it writes to, and the descriptor that the content is copied to."""

    def __init__(self, path: Path, target: int, is_shared: bool):
        self.writer, self._reader = path.open("ab"), path.open("rb", buffering=0)
        self._path, self._is_shared = path, is_shared
        self._target, self._allowance = target, Allowance(BURST_BYTES, BYTES_PER_S)
        self._left_out, self.tail = 0, b""

    def close(self) -> None:
        """Close the file."""
        self.writer.close()
        self._reader.close()

    def forward(self) -> int:
        """Copy new output, as far as it is allowed; keep its end. Returns how much was new."""
        size = begun = 0
        with contextlib.suppress(OSError):
            begun = self._reader.tell()
            if self._is_shared:
                reader = self._path.open("rb", buffering=0)
                self._reader.close()
                self._reader = reader
                self._reader.seek(begun)
            size = os.fstat(self._reader.fileno()).st_size
            # Of gigabytes in a moment only the beginning and the end are read.
            while (position := self._reader.tell()) < size:
                if self._left_out and size - position > TAIL_BYTES:
                    self._left_out += size - TAIL_BYTES - position
                    self._reader.seek(size - TAIL_BYTES)
                chunk = self._reader.read(1 << 16)
                if not chunk:
                    break
                self._pass_on(chunk)
            if self._reader.tell() >= FILE_BYTES and not self._is_shared:
                # The child appends, so that it goes on at the beginning. What it writes in this very moment is lost.
                os.ftruncate(self.writer.fileno(), 0)
                self._reader.seek(0)
        return max(0, size - begun)

    def _pass_on(self, chunk: bytes) -> None:
        # The child hides secrets in what Python prints; its libraries of C and its own children do not.
        chunk = redacted(chunk.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        self.tail = (self.tail + chunk)[-TAIL_BYTES:]
        allowed = self._allowance.take(len(chunk)) if not self._left_out else 0
        if allowed:
            _write(self._target, chunk[:allowed])
        if allowed < len(chunk):
            if not self._left_out:
                _write(
                    self._target,
                    f"\n[tokenuq: more than {BURST_BYTES >> 20} MiB of output; only its end follows]\n".encode(),
                )
            self._left_out += len(chunk) - allowed

    def forward_end(self) -> None:
        """Copy the end of a stream of which something was left out."""
        if self._left_out:
            note = f"\n[tokenuq: {max(0, self._left_out - len(self.tail)):,} bytes of output were left out here]\n"
            _write(self._target, note.encode() + self.tail)


def shown_tail(content: bytes) -> str:
    """Return the last lines of an output, each cut to what a person reads."""
    lines = content.decode(errors="replace").replace("\r", "\n").splitlines()[-TAIL_LINES:]
    cut = (line if len(line) <= LINE_CHARACTERS else f"{line[:LINE_CHARACTERS]} ..." for line in lines)
    return "\n".join(cut)


def _write(descriptor: int, content: bytes) -> None:
    """Write all of `content`, unless the other end is gone or its disk is full."""
    with contextlib.suppress(OSError):
        while content:
            content = content[os.write(descriptor, content) :]


def _descriptor(stream: TextIO, default: int) -> int:
    """Return the descriptor of a stream, or `default` if the stream has been replaced by one without any."""
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return default
