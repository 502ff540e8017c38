"""Read the rows of a dataset by its format, and count what was read, what was not, and what was left out."""

from collections import Counter
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.formats import FORMATS, gsm8k
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.sources.records import BrokenRow, LeftOutRow, ParsedRow

LABELS = ("label", "kto_tag")
"""Columns that say whether an answer is good (KTO). `label` is read only if it is true or false, also as words: other
values may be classes. `kto_tag` may be 1 or 0 too."""
_GOOD = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
CHANGES_MEANING = {"images", "image", "videos", "audios", "documents", "chosen", "rejected", "history", "context"} | {
    *("system", "system_prompt", "tools", "functions", "label", "kto_tag", "weight", "reasoning", "reasoning_content"),
    *("thinking", "chat_template_kwargs", "messages", "conversations", "train", "train_detail", "training", "masked"),
    *("mask", "trainable", "learn", "loss_weight", "sample_weight", "token_weights", "completion_mask"),
    *("assistant_masks", "labels", "weights", "content", "value", "role", "from"),
}
"""Columns that a user would expect to be trained on: if a format does not read them, that is a warning."""
COLUMNS_OF_FORMATS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "dolly": ("instruction", "response"),
    "gsm8k": ("question", "answer"),
    "raw_text": ("text",),
}
"""Format -> the columns that a row of it must have."""
_SHOWN, _COLUMNS_SHOWN = 40, 12
_PATTERNS = 1000


class RowReader:
    """The format of a dataset with the keys of its entry, and figures about the rows that were read."""

    def __init__(self, spec: DatasetSpec):
        self.spec, self.format = spec, FORMATS[spec.format]
        self._patterns: Counter[tuple[tuple[str, ...], frozenset[str], frozenset[str]]] = Counter()
        """Filled columns, those that were read, and fields of turns that were not -> rows."""
        self._read: Counter[str] = Counter()
        self._unread: Counter[str] = Counter()
        self._cells: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def parse(self, value: Any, kind: str = "json") -> ParsedRow:
        """Return a row as its format understands it.

        Args:
            value: the row.
            kind: of its file, see `kind_of`.

        Raises:
            BrokenRow: the row cannot be used.
            LeftOutRow: a rule leaves it out.
        """
        row, parsed = self._parse(value, kind)
        self._patterns[tuple(row.filled()), frozenset(row.read), frozenset(row.unread_turn_fields)] += 1
        if len(self._patterns) > _PATTERNS:
            self._count_columns()
        if row.empty_cells:
            self._cells.update(row.empty_cells)
        if row.counts:
            self._counts.update(row.counts)
        return parsed

    def is_row(self, value: Any) -> bool:
        """Return whether a JSON value is a row of the format, also if a rule leaves it out; counts nothing."""
        try:
            self._parse(value, "json")
        except BrokenRow as error:
            return isinstance(error, LeftOutRow)
        return True

    def _parse(self, value: Any, kind: str) -> tuple[Row, ParsedRow]:
        if isinstance(value, BrokenRow):
            raise value
        if not isinstance(value, dict):
            holds_turns = isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)
            remedy = '; if it is a list of turns, write it as {"messages": [...]}' if holds_turns else ""
            raise BrokenRow("not an object", f"not a JSON object{remedy}")
        row = Row(value, self.spec, kind)
        _require_good_label(row)
        try:
            parsed = self.format.parse(row)
        except BrokenRow as broken:
            if broken.reason == "missing field" and (hint := self._other_format(row)):
                raise BrokenRow(broken.reason, f"{broken}; {hint}") from None
            raise
        split = row.split()
        return row, replace(parsed, split=split) if split else parsed

    def _other_format(self, row: Row) -> str:
        """Return which columns a row has instead of those of the format; empty if it has these."""
        theirs = [self.spec.columns.get(name, name) for name in COLUMNS_OF_FORMATS.get(self.spec.format, ())]
        if all(name in row.values for name in theirs):
            return ""
        filled = row.filled()
        fitting = [name for name, columns in COLUMNS_OF_FORMATS.items() if set(columns) <= set(filled)]
        shown = ", ".join(filled[:_COLUMNS_SHOWN]) + (", ..." if len(filled) > _COLUMNS_SHOWN else "")
        if fitting:
            return f"the row has the columns of format {fitting[0]!r}: {shown}"
        return f"the row has the columns {shown or 'none'}; map them with `columns:` in datasets.yaml"

    def _count_columns(self) -> None:
        """Add the counted patterns to the counts of columns: most rows have one of few patterns."""
        for (filled, read, fields), count in self._patterns.items():
            for key in filled:
                (self._read if key in read else self._unread)[key] += count
            for key in fields:
                self._unread[key] += count
        self._patterns.clear()

    @property
    def metrics(self) -> dict[str, int | str]:
        """What was read, what was not, and counts of what formats changed, for the asset's metadata."""
        self._count_columns()
        texts = {
            "columns_read": self._read,
            "columns_not_read": self._unread,
            "cells_read_as_empty": self._cells,
        }
        counts = {name: count for name, count in sorted(self._counts.items()) if count}
        return {**{name: _listed(counter) for name, counter in texts.items() if counter}, **counts}

    @property
    def warnings(self) -> list[str]:
        """Sentences about what a user should look at."""
        self._count_columns()
        found = []
        if self._cells:
            found.append(
                f"cells of CSV that hold a word for a missing value are read as empty: {_listed(self._cells)}; write "
                "missing values as empty cells (pandas: `na_rep=''`), or use JSON if the word is meant"
            )
        suspects = Counter({name: count for name, count in self._unread.items() if _field(name) in CHANGES_MEANING})
        if suspects:
            found.append(
                f"format {self.spec.format!r} does not read these columns, which seem to change what a row means: "
                f"{_listed(suspects)}; map them with `columns:` in datasets.yaml, or name another format"
                + ("; if 0 in 'label' marks a rejected answer, set `columns: {kto_tag: label}`" * ("label" in suspects))
            )
        if self._counts[gsm8k.NOT_NUMBERS]:
            found.append(
                f"{self._counts[gsm8k.NOT_NUMBERS]:,} answers end in no plain number after '####'; they are trained as "
                "written, and evaluation.gsm8k leaves out those that no filter of lm-eval can extract"
            )
        return found


def kind_of(file: str) -> str:
    """Return the kind of a data file, for `Row`: `csv`, `arrow` (also Parquet and splits of the hub), or `json`."""
    suffixes = {suffix.lower() for suffix in PurePath(file).suffixes}
    if suffixes & {".csv", ".tsv"}:
        return "csv"
    return "json" if suffixes & {".json", ".jsonl", ".ndjson"} else "arrow"


def _require_good_label(row: Row) -> None:
    for key in LABELS:
        theirs = row.spec.columns.get(key, key)
        value = row.values.get(theirs or "")
        if value is None or value == "" or value != value:
            continue
        # pandas writes booleans as numbers if some are missing.
        word = str(value).strip().lower()
        if key == "label" and word not in ("true", "false"):
            continue
        if word not in _GOOD:
            raise BrokenRow("invalid label", f"{row.name(key)} is {word[:40]!r}; must be true or false, or 1 or 0")
        row.get(key)
        if not _GOOD[word]:
            raise LeftOutRow("label false", f"{row.name(key)} is false: a rejected answer is not trained")


def _listed(counter: Counter[str]) -> str:
    ordered = sorted(counter.items(), key=lambda one: (-one[1], one[0]))
    shown = [f"{name or '(no name)'} ({count:,})" for name, count in ordered[:_SHOWN]]
    return ", ".join(shown) + (f", and {len(counter) - _SHOWN:,} more" if len(counter) > _SHOWN else "")


def _field(column: str) -> str:
    """Return the name of a column, or of a turn's field without its column."""
    return column.rpartition(".")[2]
