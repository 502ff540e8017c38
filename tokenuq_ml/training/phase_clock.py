"""How long a training process spends in each phase of its steps.

Phases nest: a phase's time is its own, without that of the phases inside it. On a GPU the device's own events are
read once at the end, so that measuring waits for nothing. Does not know what is done in a phase.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PhaseClock:
    """Seconds by phase, of what runs between `start` and `stop`; outside of all phases it is `other`."""

    OTHER = "other"

    def __init__(self, device: str | torch.device = "cpu"):
        self._events = torch.device(device).type == "cuda"
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._phase: str | None = None
        self._mark = None

    def start(self) -> None:
        """Begins to count; does nothing where it has begun."""
        if self._phase is None:
            self._phase, self._mark = self.OTHER, self._now()

    def stop(self) -> None:
        """Ends the counting."""
        self._switch(None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what is inside as `name`; nothing where the clock does not run."""
        before = self._phase
        if before is None:
            yield
            return
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far, `total` among them."""
        if self._spans:
            torch.cuda.synchronize()
            for phase, begin, end in self._spans:
                self._seconds[phase] += begin.elapsed_time(end) / 1000
            self._spans.clear()
        return {**self._seconds, "total": sum(self._seconds.values())}

    def _switch(self, phase: str | None) -> None:
        now = self._now()
        if self._phase is not None:
            if self._events:
                self._spans.append((self._phase, self._mark, now))
            else:
                self._seconds[self._phase] += now - self._mark
        self._phase, self._mark = phase, now

    def _now(self):
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
