"""The time that a training process spends in each phase of its steps.

Phases nest, and a phase's time excludes that of the phases inside it. On a GPU the clock records device events and
reads them once at the end, so measuring does not synchronise.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PhaseClock:
    """Stopwatch of seconds by phase between `start` and `stop`; time outside all phases is `other`.

    Args:
        device: where the work runs; on CUDA the device's own events are used.
    """

    OTHER = "other"

    def __init__(self, device: str | torch.device = "cpu"):
        self._uses_events = torch.device(device).type == "cuda"
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._phase: str | None = None
        self._phase_start = None

    def start(self) -> None:
        """Start the clock, unless it runs."""
        if self._phase is None:
            self._phase, self._phase_start = self.OTHER, self._timestamp()

    def stop(self) -> None:
        """Stop the clock."""
        self._switch(None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`; does nothing if the clock is stopped."""
        outer = self._phase
        if outer is None:
            yield
            return
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def seconds(self) -> dict[str, float]:
        """Return seconds by phase so far, and their `total`."""
        if self._spans:
            torch.cuda.synchronize()
            for phase, begin, end in self._spans:
                self._seconds[phase] += begin.elapsed_time(end) / 1000
            self._spans.clear()
        return {**self._seconds, "total": sum(self._seconds.values())}

    def _switch(self, phase: str | None) -> None:
        now = self._timestamp()
        if self._phase is not None:
            if self._uses_events:
                self._spans.append((self._phase, self._phase_start, now))
            else:
                self._seconds[self._phase] += now - self._phase_start
        self._phase, self._phase_start = phase, now

    def _timestamp(self):
        if not self._uses_events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
