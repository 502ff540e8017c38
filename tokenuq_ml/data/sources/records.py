"""Records, parsed and broken rows, truncated files, and the checks of text that all row formats share."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_TEXT = 1_000_000
"""Largest number of characters of one text; a longer one is a fault, since no context holds a tenth of it."""


class BrokenRow(ValueError):
    """A row that cannot be used: `reason` is the kind of fault, by which rows are counted, the message its detail."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class LeftOutRow(BrokenRow):
    """A row that is fine and not used, by a rule that the user chose: `reason` is the rule, such as "label false".

    It is listed and counted apart from broken rows, and does not count against `max_broken_share`.
    """


class TruncatedFile(Exception):
    """The file ends in the middle of a record.

    Args:
        location: where that record begins.
        complete: number of complete records before it.
    """

    def __init__(self, location: str, complete: int):
        super().__init__(
            f"ends in the middle of the record that begins at {location}; the {complete:,} before it are complete"
        )
        self.complete = complete


@dataclass(frozen=True, slots=True)
class Record:
    """A record: its index from 0, and the line on which it begins, from 1 (None if the format has no lines).

    `value` is any JSON value, or a BrokenRow if the record cannot be read.
    """

    index: int
    line: int | None
    value: Any

    @property
    def location(self) -> "RowLocation":
        """Where the record is, for messages."""
        return RowLocation(self.index + 1, self.line)


class RowLocation(NamedTuple):
    """The location of a row in its file; row and line are counted from 1."""

    row: int
    line: int | None

    def __str__(self) -> str:
        if self.line is None:
            return f"row {self.row}"
        return f"line {self.line}" + (f" (row {self.row})" if self.row != self.line else "")


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A parsed row: its turns, fields of the example's `source`, and the split that it names.

    `turn_weights` and `template` are those of `Example`.
    """

    messages: list[dict[str, Any]]
    source: dict[str, Any]
    split: str = ""
    turn_weights: list[float] | None = None
    template: dict[str, Any] = field(default_factory=dict)


def check_text(value: Any, at: str, blank: bool = False) -> str:
    """Return a value that must be text; `at` names it in errors, and `blank` allows it to be blank.

    Raises:
        BrokenRow: it is of another type, blank, too long, or not valid Unicode.
    """
    if not isinstance(value, str):
        raise BrokenRow("wrong type", f"{at} is not text but {type(value).__name__}")
    if len(value) > MAX_TEXT:
        raise BrokenRow("text too long", f"{at} holds {len(value):,} characters, more than {MAX_TEXT:,}")
    if not blank and not value.strip():
        raise BrokenRow("empty text", f"{at} is empty")
    require_unicode(value, at)
    return value


def require_unicode(value: Any, where: str) -> None:
    """Check that all text in a JSON value can be stored.

    Raises:
        BrokenRow: some text holds a lone surrogate or a byte that is not UTF-8.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BrokenRow(
                "invalid Unicode",
                f"{where}: is not valid Unicode (a lone surrogate, or bytes that are no UTF-8: save the file as UTF-8)",
            ) from None
    elif isinstance(value, list):
        for one in value:
            require_unicode(one, where)
    elif isinstance(value, dict):
        for key, one in value.items():
            require_unicode(key, where)
            require_unicode(one, where)
