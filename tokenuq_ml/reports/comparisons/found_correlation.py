"""One correlation of a study, with its interval."""

from typing import NamedTuple


class Found(NamedTuple):
    """One correlation of a study, with its interval; None where it is not defined."""

    study: str
    model: str
    name: str
    """A value of `NAMES`, or `DIFFERENCE`."""
    method: str
    value: float | None
    low: float | None
    high: float | None
    examples: int
    tokens: int

    @property
    def text(self) -> str:
        """Return the correlation with its interval."""
        return interval_text(self.value, self.low, self.high)

    @property
    def sign(self) -> int:
        """Return 1 if the interval is above 0, -1 if it is below, and 0 if it contains 0 or is not defined."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def interval_text(value: float | None, low: float | None, high: float | None) -> str:
    """Return a value with its interval as text."""
    if value is None:
        return "undefined"
    return f"{value:+.3f}" + ("" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]")
