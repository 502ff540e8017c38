"""Progress of long computations: a line every few seconds, with the work done and the time left.

`progress_line` writes all of these lines, and `measured` reads them: log messages are all that reaches `tokenuq run`
from every place where a stage may work.
"""

import re
import time
from typing import NamedTuple, Protocol

_LINE = re.compile(
    r"(?P<what>.+?): (?P<done>[\d,]+)/(?P<total>[\d,]+) (?P<unit>[^\W\d]+), "
    r"(?P<details>(?:.+?, )?)(?P<left>\d+) s left\b.*",
    re.DOTALL,
)


class Measured(NamedTuple):
    """How far some work is."""

    what: str
    done: int
    total: int
    unit: str
    details: str
    """Its rate, or figures."""
    seconds_left: float


def progress_line(
    what: str, done: int, total: int, unit: str, details: str, seconds_left: float, note: str = ""
) -> str:
    """Return the line that says how far some work is."""
    after = f", {note}" if note else ""
    return f"{what}: {done:,}/{total:,} {unit}, {details}, {seconds_left:.0f} s left{after}"


def measured(line: str) -> Measured | None:
    """Return what a progress line says; None for any other message."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    done, total = (int(found[name].replace(",", "")) for name in ("done", "total"))
    return Measured(found["what"], done, total, found["unit"], found["details"].removesuffix(", "), int(found["left"]))


class Reporter(Protocol):
    """The destination of progress messages."""

    def info(self, message: str) -> None:
        """Report a message."""

    def warning(self, message: str) -> None:
        """Report a warning."""

    def count_tokens(self, tokens: int) -> None:
        """Add tokens that went through the model; the next result's `tokens_per_second` is computed from them."""


class Progress:
    """A counter that reports progress and the time left, at most once every `every_s` seconds.

    Args:
        reporter: where the lines go. If `unit` is tokens, it counts them for the stage's throughput.
        what: the name of the work, at the start of each line.
        total: the number of units of work.
        unit: the name of a unit.
        every_s: seconds between two lines.
    """

    def __init__(self, reporter: Reporter, what: str, total: int, unit: str, every_s: float = 5.0):
        self.reporter, self.what, self.total, self.unit, self.every_s = reporter, what, total, unit, every_s
        self.done, self.started = 0, time.monotonic()
        self._skipped = 0
        self._last_line = self.started

    def skip(self, amount: int) -> None:
        """Count units that an earlier run has done: no part of the rate."""
        self.done += amount
        self._skipped += amount

    def add(self, amount: int, note: str = "") -> None:
        """Count `amount` more units; a `note`, such as a loss, is added at the end of the line."""
        self.done += amount
        if self.unit == "tokens":
            self.reporter.count_tokens(amount)
        now = time.monotonic()
        if now - self._last_line < self.every_s and self.done < self.total:
            return
        self._last_line = now
        rate = (self.done - self._skipped) / max(now - self.started, 1e-9)
        left = (self.total - self.done) / rate if rate else float("inf")
        details = f"{rate:,.1f} {self.unit}/s"
        self.reporter.info(progress_line(self.what, self.done, self.total, self.unit, details, left, note))
