"""Write a teacher's states into the file of its cache, from any process that sees the file.

Shapes: N response tokens of an example, D hidden size.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import mean_embeddings

COPIED_BYTES = 2**24
"""What is in memory while states are copied from file to file."""


class StatesWriter:
    """Writes the states of examples to their places in the file of a cache.

    Args:
        file: open for writing.
        start: tensor -> the byte at which it starts.
        first: example -> its first row in each tensor.
        head: the head that the teacher shares with its students.
    """

    def __init__(self, file: Any, start: Mapping[str, int], first: Mapping[str, int], head: Head):
        self._file, self._start, self._first, self._head = file, start, first, head

    def put(self, example_id: str, hidden_ND: Tensor) -> None:
        """Write the teacher's states of an example's response tokens, in order of position."""
        self._write("hidden_ND", example_id, hidden_ND.bfloat16())
        if "mean_ND" in self._start:
            states = mean_embeddings(hidden_ND, self._head).states(hidden_ND)
            self._write("mean_ND", example_id, states.mean_ND)
            self._write("offset_N", example_id, states.offset_N.float())

    def _write(self, name: str, example_id: str, rows: Tensor) -> None:
        # Not through a memory map, whose written pages count as memory of the process.
        data = rows.cpu().contiguous().flatten().view(torch.uint8).numpy()
        bytes_per_row = rows[:1].numel() * rows.element_size()
        self._file.seek(self._start[name] + self._first[example_id] * bytes_per_row)
        self._file.write(data)


class CapturedWrites:
    """In place of a file: keeps what is written, and where.

    Attributes:
        pieces: first byte and content of each write.
    """

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self._position = 0

    def seek(self, position: int) -> None:
        """Let the next write begin at a byte."""
        self._position = position

    def write(self, data: Any) -> None:
        """Keep what is written."""
        self.pieces.append((self._position, bytes(data)))
        self._position += len(self.pieces[-1][1])


@dataclass(frozen=True)
class CachePart:
    """Where the states of some examples go in the file of a cache. The same states may be written several times."""

    path: Path
    start: Mapping[str, int]
    """Tensor -> the byte at which it starts."""
    first: Mapping[str, int]
    """Example -> its first row in each tensor."""

    @contextmanager
    def writer(self, head: Head) -> Iterator[StatesWriter]:
        """Open the file, and yield what writes to it; at the end of the block everything is written."""
        with open(self.path, "r+b") as file:
            yield StatesWriter(file, self.start, self.first, head)

    def captured_by(self, memory: CapturedWrites, head: Head) -> StatesWriter:
        """Return what writes to memory, on a machine that does not see the file."""
        return StatesWriter(memory, self.start, self.first, head)

    def write(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Write to the file what was captured on another machine."""
        if not pieces:
            return
        with open(self.path, "r+b") as file:
            for first, data in pieces:
                file.seek(first)
                file.write(data)


def row_spans(
    rows: Iterable[tuple[int, int]], start: Mapping[str, int], row_bytes: Mapping[str, int]
) -> Iterator[tuple[int, int]]:
    """Yield (first byte, bytes) of rows in each tensor of a cache, those that follow each other as one.

    Args:
        rows: (first row, number of rows), as of examples.
        start: tensor -> the byte at which it starts.
        row_bytes: tensor -> the bytes of one of its rows.
    """
    joined: list[list[int]] = []
    for first, count in rows:
        if joined and sum(joined[-1]) == first:
            joined[-1][1] += count
        else:
            joined.append([first, count])
    for name, begin in start.items():
        yield from ((begin + first * row_bytes[name], count * row_bytes[name]) for first, count in joined)


def copy_bytes(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Copy bytes from one open file to another, in bounded memory.

    Raises:
        ValueError: the source ends before.
    """
    while size:
        data = source.read(min(size, COPIED_BYTES))
        if not data:
            raise ValueError(f"{source.name} ends {size} bytes too early")
        target.write(data)
        size -= len(data)
