"""Progress of long work: one line every few seconds, with what is done and the time to go.

Knows nothing of where lines go (`Reporter`) or of what is being done.
"""

import time
from typing import Protocol


class Reporter(Protocol):
    """Where a computation reports its progress."""

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def count_tokens(self, tokens: int) -> None:
        """Add tokens that went through the model; `tokens_per_second` of the next result is computed from them."""


class Progress:
    """Counts units of work and says, at most every `every_s` seconds, how far and how long to go.

    Where the unit is tokens, they count for the stage's throughput.
    """

    def __init__(self, reporter: Reporter, what: str, total: int, unit: str, every_s: float = 5.0):
        self.reporter, self.what, self.total, self.unit, self.every_s = reporter, what, total, unit, every_s
        self.done, self.started, self.said = 0, time.monotonic(), time.monotonic()

    def add(self, amount: int, note: str = "") -> None:
        """`amount` more units are done; `note` (a loss, say) stands at the line's end."""
        self.done += amount
        if self.unit == "tokens":
            self.reporter.count_tokens(amount)
        now = time.monotonic()
        if now - self.said < self.every_s and self.done < self.total:
            return
        self.said = now
        elapsed = max(now - self.started, 1e-9)
        rate = self.done / elapsed
        left = (self.total - self.done) / rate if rate else float("inf")
        self.reporter.info(
            f"{self.what}: {self.done:,}/{self.total:,} {self.unit}, {rate:,.1f} {self.unit}/s, "
            f"{left:.0f} s to go{', ' + note if note else ''}"
        )
