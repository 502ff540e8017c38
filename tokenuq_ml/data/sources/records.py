"""What a data file is made of, whatever its format: records, broken rows, and an end in the middle of one.

Knows the checks that all formats share; neither files nor what a format's fields mean.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_TEXT = 1_000_000
"""Characters of one text. A longer one is a file gone wrong: no context holds a tenth of it."""


class BrokenRow(ValueError):
    """A row that cannot be used. `reason` is its kind, under which it is counted; the message says what it is."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class EndsInside(Exception):
    """The file ends in the middle of a record: `place` is where that begins, `whole` how many records come before."""

    def __init__(self, place: str, whole: int):
        super().__init__(f"ends in the middle of the record that begins at {place}; the {whole:,} before it are whole")
        self.whole = whole


@dataclass(frozen=True, slots=True)
class Record:
    """A record as read: its number from 0, the line that it begins on from 1 (None where there are no lines).

    `value` is any JSON value, or the BrokenRow that stands in its place.
    """

    index: int
    line: int | None
    value: Any

    @property
    def place(self) -> "Place":
        return Place(self.index + 1, self.line)


class Place(NamedTuple):
    """Where in a file a row stands, both from 1."""

    row: int
    line: int | None

    def __str__(self) -> str:
        if self.line is None:
            return f"row {self.row}"
        return f"line {self.line}" + (f" (row {self.row})" if self.row != self.line else "")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A row in the terms of its format: turns of role and content, what goes into `source`, the split it names."""

    messages: list[dict[str, str]]
    source: dict
    split: str = ""


def question_and_answer(question: str, answer: str, **source) -> Parsed:
    """A conversation of one turn each."""
    return Parsed([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], source)


def text_field(row: dict, key: str, where: str = "") -> str:
    """A field that must be text with something in it; `where` is a place inside the row, such as `turn 2`.

    Raises:
        BrokenRow: it is missing, of another type, blank, too long, or not valid Unicode.
    """
    value = row.get(key)
    at = f"{where}: {key!r}" if where else repr(key)
    if value is None:
        raise BrokenRow("missing field", f"{at} is {'null' if key in row else 'missing'}")
    if not isinstance(value, str):
        raise BrokenRow("wrong type", f"{at} is not text")
    if len(value) > MAX_TEXT:
        raise BrokenRow("text too long", f"{at} holds {len(value):,} characters, more than {MAX_TEXT:,}")
    if not value.strip():
        raise BrokenRow("empty text", f"{at} is empty")
    require_unicode(value, at)
    return value


def optional_text(row: dict, key: str) -> str:
    """A field that may be missing, null or blank: then empty text.

    Raises:
        BrokenRow: it is of another type, too long, or not valid Unicode.
    """
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return text_field(row, key)


def require_unicode(value: Any, where: str) -> None:
    """Any JSON value: all its text must be storable.

    Raises:
        BrokenRow: some text holds a lone surrogate or a byte that is not UTF-8.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BrokenRow(
                "invalid Unicode", f"{where}: is not valid Unicode (a lone surrogate or a broken byte)"
            ) from None
    elif isinstance(value, list):
        for one in value:
            require_unicode(one, where)
    elif isinstance(value, dict):
        for key, one in value.items():
            require_unicode(key, where)
            require_unicode(one, where)


def require_turns(messages: list[dict[str, str]]) -> None:
    """An optional system turn, then user and assistant in turn, the assistant last.

    Raises:
        BrokenRow: roles come in another order, or are others.
    """
    roles = [turn["role"] for turn in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        shown = ", ".join(roles[:8]) + (", ..." if len(roles) > 8 else "")
        raise BrokenRow(
            "roles out of order",
            "roles must be an optional system turn, then user and assistant in turn, ending "
            f"with the assistant; are {shown}",
        )
