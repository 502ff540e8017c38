"""Rows of a cache on a device before the head asks for them.

A thread reads them from the file into pinned memory and starts their copy on a stream of its own, while the model's
forward pass runs. On a CPU, rows are read when they are asked for: a thread would take the cores from the pass.

Not by a DataLoader's workers, which pin what they collate: they would be processes that read the cache for batches
which other processes have to know.

Shapes: N response tokens of a batch, D hidden size.
"""

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

Spans = Sequence[tuple[int, int]]
"""First row and number of rows of each example."""
Copied = tuple[dict[str, Tensor], Any]
"""Tensors by name, and the event of the device that marks them as copied; None if nothing is to be waited for."""

MOST_STARTED = 2
"""Batches whose rows are in memory before they are asked for."""


class PrefetchedRows:
    """Rows of the tensors of a file, on a device.

    Args:
        rows: name -> what gives rows by a slice.
        device: where the rows go.
        in_background: whether `start` reads; default: on other devices than a CPU.
    """

    def __init__(self, rows: Mapping[str, Any], device: str | torch.device, in_background: bool | None = None):
        self._rows, self.device = rows, torch.device(device)
        in_background = self.device.type != "cpu" if in_background is None else in_background
        self._pool = ThreadPoolExecutor(1, "teacher_cache") if in_background else None
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._started: dict[Hashable, Future[Copied]] = {}

    def start(self, key: Hashable, spans: Spans) -> None:
        """Begin to read rows, unless that was begun before.

        Args:
            key: what `take` asks for.
            spans: which rows.
        """
        if self._pool is None or key in self._started:
            return
        while len(self._started) >= MOST_STARTED:
            # Of a step that was given up.
            self._started.pop(next(iter(self._started)))
        self._started[key] = self._pool.submit(self._copied, spans)

    def take(self, key: Hashable, spans: Spans) -> dict[str, Tensor]:
        """Return rows on the device, and forget them; reads them now if `start` was not called."""
        started = self._started.pop(key, None)
        tensors, event = started.result() if started is not None else self._copied(spans)
        if event is not None:
            # The device waits, not the host. The memory belongs to the other stream until this one is done with it.
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for tensor in tensors.values():
                tensor.record_stream(stream)
        return tensors

    def _copied(self, spans: Spans) -> Copied:
        read = {
            name: torch.cat([rows[first : first + tokens] for first, tokens in spans or [(0, 0)]])
            for name, rows in self._rows.items()
        }
        if self._stream is None:
            return {name: tensor.to(self.device) for name, tensor in read.items()}, None
        with torch.cuda.stream(self._stream):
            copied = {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in read.items()}
            return copied, self._stream.record_event()
