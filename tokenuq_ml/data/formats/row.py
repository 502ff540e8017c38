"""A row as the formats read it: under mapped column names, with a record of what was read.

CSV cannot tell a missing value from text. pandas writes missing values as `nan`, `None` or `<NA>` if a column was made
text, and a prompt that ends in `nan` teaches nothing, so such a cell counts as empty where the format does not require
it. The cells are counted. Where the format requires text, `nan` and `<NA>` make the row broken.
"""

import json
from collections.abc import Iterable
from typing import Any

from tokenuq_ml.config import SPLITS, DatasetSpec
from tokenuq_ml.data.sources.records import BrokenRow, check_text

MISSING_IN_CSV = ("nan", "NaN", "<NA>", "None", "NULL", "null")
SPLIT_WORDS: dict[str, str] = {
    **{str(split): str(split) for split in SPLITS},
    "training": "train",
    **dict.fromkeys(("valid", "val", "dev"), "validation"),
    "testing": "test",
}
"""Words of a column `split` -> ours: those of `datasets`, without `eval`, which it takes for `test`."""
_OF_PYTHON = ("[{", "{'", "['")
NEVER_TEXT_IN_CSV = MISSING_IN_CSV[:3]


class Row:
    """One row, and what its format read of it.

    Args:
        values: the row's columns.
        spec: the dataset: its `columns`, `roles`, `train_on` and `merge_turns`.
        kind: `json`, `csv`, or `arrow` (also Parquet and the hub), whose objects have every key that any row has.
    """

    def __init__(self, values: dict[str, Any], spec: DatasetSpec, kind: str = "json"):
        self.values, self.spec, self.kind = values, spec, kind
        self._columns = spec.columns
        self.read: set[str] = set()
        """Columns with a value that the format asked for, under the names that they have in the file."""
        self.unread_turn_fields: set[str] = set()
        self.empty_cells: list[str] = []
        """Cells of CSV that hold a word for a missing value, as `column 'word'`."""
        self.counts: dict[str, int] = {}
        """Further figures for the dataset's metadata."""

    def get(self, key: str) -> Any:
        """Return the value of one of our columns; None if it is missing, null, or mapped to another name."""
        columns = self._columns
        if columns:
            theirs = columns.get(key, key)
            if theirs is None or (key not in columns and key in columns.values()):
                return None
            key = theirs
        value = self.values.get(key)
        if value is None:
            return None
        self.read.add(key)
        return None if value != value else value

    def has(self, key: str) -> bool:
        """Return whether the row has a value that is not blank."""
        value = self.get(key)
        return value is not None and not (isinstance(value, str) and (not value.strip() or self._is_missing(value)))

    def text(self, key: str) -> str:
        """Return a column that must be non-blank text.

        Raises:
            BrokenRow: it is missing, of another type, blank, too long, or not valid Unicode.
        """
        value = self.get(key)
        if value is None:
            state = "null" if self.spec.columns.get(key, key) in self.values else "missing"
            raise BrokenRow("missing field", f"{self.name(key)} is {state}")
        if self.kind == "csv" and value in NEVER_TEXT_IN_CSV:
            raise BrokenRow("empty text", f"{self.name(key)} is {value!r}, which pandas writes for a missing value")
        return check_text(value, self.name(key))

    def optional(self, key: str) -> str:
        """Return a column that must be text, or empty text if it is missing, null or blank.

        Raises:
            BrokenRow: it is of another type, too long, or not valid Unicode.
        """
        value = self.get(key)
        if value is None or (isinstance(value, str) and not value.strip()):
            return ""
        if self._is_missing(value):
            self.empty_cells.append(f"{key} {value!r}")
            return ""
        return check_text(value, self.name(key))

    def first(self, keys: Iterable[str]) -> str:
        """Return the text of the columns that mean the same, of which a row fills one at most.

        Raises:
            BrokenRow: two of them have different texts, or one is not text.
        """
        texts = {key: text for key in keys if (text := self.optional(key))}
        if len(texts) > 1 and len(set(texts.values())) > 1:
            raise BrokenRow("contradicting fields", f"{' and '.join(map(repr, texts))} have different texts")
        return next(iter(texts.values()), "")

    def json(self, key: str, kind: type) -> Any:
        """Return a column that must be a list or an object, or JSON text of one; None if it is missing or empty.

        Raises:
            BrokenRow: it is of another type, or not JSON.
        """
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            value = from_json(value, self.name(key)) if value.strip() and not self._is_missing(value) else None
        if value is None or value in ([], {}):
            return None
        if not isinstance(value, kind):
            what = "a list" if kind is list else "an object"
            raise BrokenRow("wrong type", f"{self.name(key)} must be {what}, or JSON text of one")
        return without_nulls(value) if self.kind == "arrow" else value

    def count(self, name: str, number: int = 1) -> None:
        """Add to a figure of the dataset's metadata."""
        if number:
            self.counts[name] = self.counts.get(name, 0) + number

    def split(self) -> str:
        """Return the split that the row names; empty if it names none.

        It is one of ours; if the dataset has `drawn_from`, which names splits of the rows, it may be any other.

        Raises:
            BrokenRow: there is no such split.
        """
        value = self.get("split")
        if value is None or (isinstance(value, str) and not value.strip()) or self._is_missing(value):
            return ""
        word = str(value).strip()
        split = SPLIT_WORDS.get(word.lower())
        if self.spec.drawn_from and (split is None or word in self.spec.drawn_from.values()):
            return word
        if split is None:
            raise BrokenRow(
                "unknown split",
                f"split {word[:40]!r} is none of {', '.join(SPLITS)}; correct it, name it in `drawn_from` "
                f"(`drawn_from: {{train: {word[:40]}}}`), or set `columns: {{split: null}}` if the column means "
                "something else",
            )
        return split

    def name(self, key: str) -> str:
        """Return how messages name a column: ours, and the file's if it is another."""
        theirs = self.spec.columns.get(key, key)
        return repr(key) if theirs == key else f"{key!r} (column {theirs!r})"

    def unread(self) -> set[str]:
        """Return the columns with a value that the format did not ask for, and such fields of turns."""
        return {key for key in self.filled() if key not in self.read} | self.unread_turn_fields

    def filled(self) -> list[str]:
        """Return the columns with a value; empty text is none."""
        return [key for key, value in self.values.items() if value is not None and value != ""]

    def _is_missing(self, value: Any) -> bool:
        return self.kind == "csv" and value in MISSING_IN_CSV


def from_json(text: str, where: str) -> Any:
    """Return the value of JSON text.

    Raises:
        BrokenRow: it is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        shown = (
            "; it seems to be written by Python's `str`: use `json.dumps`" if text.lstrip()[:2] in _OF_PYTHON else ""
        )
        raise BrokenRow("not JSON", f"{where} is text that is not JSON{shown}") from None


def without_nulls(value: Any) -> Any:
    """Return a value without keys that are null: Arrow gives every object the keys of all."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [without_nulls(one) for one in value]
    return value
