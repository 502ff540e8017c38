"""Reviewed files: a person's decisions about examples, read from CSV or Parquet and applied.

`tokenuq curate` writes such files with empty decisions; docs/curation.md describes the columns. Only `example_id` and
one of the decisions are needed, so that a file of any origin will do. Polars reads both formats; what is checked here
is what the columns mean. Does not import torch.
"""

import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from tokenuq_ml.data.examples import TEXT_ROLE, Example
from tokenuq_ml.errors import InputError

SUFFIXES = (".csv", ".parquet")
EMPTY_DECISIONS = {"keep": pl.Boolean, "weight": pl.Float64, "mask": pl.String}
"""The columns that a reviewer fills in."""
SPANS_COLUMN = "token_spans"
"""JSON: `[position, turn, start, end]` of each response token, which resolves token positions in `mask`."""
TRAINED_ROLES = ("assistant", TEXT_ROLE)
KEEP_FALSE = "curated: keep is false"
"""Reason of a row in the table `rejected_rows`."""

_WORDS = {
    **dict.fromkeys(("", "true", "yes", "1", "1.0"), True),
    **dict.fromkeys(("false", "no", "0", "0.0"), False),
}
_CHARACTERS = re.compile(r"(?:(\d+):)?(\d+)(?:\.\.|-)(\d+)")
_TOKENS = re.compile(r"t(\d+)(?:(?:\.\.|-)(\d+))?")


class Span(NamedTuple):
    """Characters of a turn's content, from `start` up to `end`, that are not trained. Turns count from 0."""

    turn: int
    start: int
    end: int


@dataclass(frozen=True)
class Decision:
    """What a reviewer decided about one example."""

    row: int
    """Number of the row in the file, from 1, without the header."""
    keep: bool = True
    weight: float | None = None
    mask: str = ""
    token_spans: str = ""
    reasons: str = ""


@dataclass(frozen=True)
class Review:
    """A reviewed file."""

    file: Path
    decisions: Mapping[str, Decision]
    """By example id; also those of rows without a decision."""
    columns_not_read: tuple[str, ...]

    def error(self, example_id: str, problem: str) -> InputError:
        """Return the error that names file, row and example."""
        return InputError(f"{self.file}: row {self.decisions[example_id].row} (example {example_id}): {problem}")


@dataclass(frozen=True)
class LeftOut:
    """An example that a reviewer left out."""

    example: Example
    row: int
    detail: str


# Reading.


def read_review(file: str | Path) -> Review:
    """Read a reviewed file.

    Raises:
        InputError: the file is not CSV or Parquet, a column is missing, an example has two rows, or a decision is not
            understood; the message names file and row.
    """
    path = Path(file)
    frame = _frame(path)
    if "example_id" not in frame.columns or not set(EMPTY_DECISIONS) & set(frame.columns):
        raise InputError(
            f"{path}: needs the column example_id and at least one of {', '.join(EMPTY_DECISIONS)}; it has "
            f"{', '.join(frame.columns) or 'none'}"
        )
    read = ("example_id", "reasons", SPANS_COLUMN, *EMPTY_DECISIONS)
    decisions: dict[str, Decision] = {}
    for number, row in enumerate(frame.iter_rows(named=True), 1):
        example_id = str(row["example_id"] or "").strip()
        if not example_id:
            raise InputError(f"{path}: row {number}: example_id is empty; give the example's id or remove the row")
        if example_id in decisions:
            first = decisions[example_id].row
            raise InputError(f"{path}: row {number}: example {example_id} is in row {first} already; keep one of them")
        try:
            decisions[example_id] = _decision(number, row)
        except ValueError as error:
            raise InputError(f"{path}: row {number} (example {example_id}): {error}") from None
    return Review(path, decisions, tuple(name for name in frame.columns if name not in (*read, *_WRITTEN)))


_WRITTEN = frozenset(
    ("rank", "study", "split", "question", "answer", "suspect_spans", "score", "loss", "base_loss", "change", "bald")
    + ("selected_share", "repeat_of", "similarity")
)
"""Further columns that `tokenuq curate` writes: for the reviewer, not read back."""


def _frame(path: Path) -> pl.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path)
        # Spreadsheets write semicolons where the comma is the decimal point.
        text = path.read_text(encoding="utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        # Not from the path: polars takes carriage returns alone, with which Excel for Mac ends lines, for text.
        return pl.read_csv(io.StringIO(text), infer_schema=False, separator=separator)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it as CSV in UTF-8") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _decision(number: int, row: Mapping[str, Any]) -> Decision:
    """Return the decision of a row.

    Raises:
        ValueError: a value is not understood.
    """
    keep = _text(row.get("keep")).casefold()
    if keep not in _WORDS:
        raise ValueError(f"keep is {row['keep']!r}; allowed: true, false, or empty")
    return Decision(
        number,
        _WORDS[keep],
        _weight(row.get("weight")),
        _text(row.get("mask")),
        _text(row.get(SPANS_COLUMN)),
        _text(row.get("reasons")),
    )


def _weight(given: Any) -> float | None:
    if not _text(given):
        return None
    try:
        weight = float(given)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"weight is {given!r}; give a number above 0, or set keep to false")
    return weight


def _text(value: Any) -> str:
    """Return a cell as text; null, and the NaN that pandas writes for it, is empty."""
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if is_missing else str(value).strip()


# Applying.


def curated(examples: Iterable[Example], review: Review, made_from: str, name: str) -> Iterator[Example | LeftOut]:
    """Yield the examples of a dataset as the review decided, with ids of the new dataset; those left out as `LeftOut`.

    Splits and provenance stay; `source` gets `curated_from`, the id that the example had.

    Args:
        examples: of the dataset that was reviewed.
        review: decisions by the ids of those examples.
        made_from: name of that dataset.
        name: name of the new dataset.

    Raises:
        InputError: a row of the review is about no example, or a span of `mask` is not inside a trained turn.
    """
    unknown = dict(review.decisions)
    for example in examples:
        decision = unknown.pop(example.id, None)
        new_id = f"{name}/{example.id.removeprefix(f'{made_from}/')}"
        new = replace(example, id=new_id, source={**example.source, "curated_from": example.id})
        if decision is None:
            yield new
        elif decision.keep:
            yield _changed(new, decision, review, example.id)
        else:
            yield LeftOut(example, decision.row, f"{example.id}: {decision.reasons}".rstrip(": "))
    if unknown:
        first = next(iter(unknown))
        more = f"; {len(unknown)} rows name unknown examples" if len(unknown) > 1 else ""
        raise review.error(first, f"there is no such example in dataset {made_from}{more}; correct or remove the row")


def _changed(example: Example, decision: Decision, review: Review, old_id: str) -> Example:
    """Return the example with the weight and the masked spans of its decision."""
    if decision.weight is not None:
        weights = example.turn_weights or [float(turn["role"] in TRAINED_ROLES) for turn in example.messages]
        example = replace(example, turn_weights=[weight * decision.weight for weight in weights])
    if decision.mask:
        try:
            spans = mask_spans(decision.mask, example, decision.token_spans)
        except ValueError as error:
            raise review.error(old_id, f"mask {decision.mask!r}: {error}") from None
        example = replace(example, untrained_spans=[*(example.untrained_spans or ()), *map(list, spans)])
    return example


def mask_spans(mask: str, example: Example, token_spans: str = "") -> list[Span]:
    """Return the spans that a cell of `mask` names.

    A cell holds spans, separated by white space, commas or semicolons: `START..END` are characters of the answer's
    text, counted from 0, the end not included; `TURN:START..END` the same in the conversation's turn TURN, counted from
    1; `tN` or `tN..M` are token positions as in the token tables, the last included. `-` may stand for `..`, but
    spreadsheets turn `3-12` into a date.

    Args:
        mask: the cell.
        example: the example that it is about.
        token_spans: the row's cell of `SPANS_COLUMN`.

    Raises:
        ValueError: a span is not understood, or not inside a trained turn.
    """
    weights = example.turn_weights or [1.0] * len(example.messages)
    trained = [
        number
        for number, (turn, weight) in enumerate(zip(example.messages, weights, strict=True))
        if turn["role"] in TRAINED_ROLES and weight
    ]
    spans: list[Span] = []
    for word in filter(None, re.split(r"[\s,;]+", mask)):
        if found := _TOKENS.fullmatch(word):
            spans += _of_tokens(int(found[1]), int(found[2] or found[1]), token_spans)
        elif found := _CHARACTERS.fullmatch(word):
            if found[1] is None and len(trained) != 1:
                raise ValueError(f"{word} names no turn, and {len(trained)} turns are trained; write TURN:{word}")
            spans.append(Span(int(found[1]) - 1 if found[1] else trained[0], int(found[2]), int(found[3])))
        else:
            raise ValueError(f"{word!r} is not a span; write START..END, TURN:START..END, or tPOSITION")
    for span in spans:
        _check(span, example, trained)
    return spans


def span_text(turn: int, start: int, end: int, several: bool) -> str:
    """Return a span as `mask_spans` reads it; `several`: the conversation has several trained turns."""
    return f"{turn + 1}:{start}..{end}" if several else f"{start}..{end}"


def _of_tokens(first: int, last: int, token_spans: str) -> list[Span]:
    if not token_spans:
        raise ValueError(f"t{first} is a token position, which needs the column {SPANS_COLUMN}; give characters")
    try:
        known = {position: Span(turn, start, end) for position, turn, start, end in json.loads(token_spans)}
    except (ValueError, TypeError):
        raise ValueError(f"the column {SPANS_COLUMN} was changed; copy it from the review again") from None
    found = [known[position] for position in range(first, last + 1) if position in known]
    if not found or first not in known or last not in known:
        raise ValueError(f"t{first if first not in known else last} is no response token with text")
    return found


def _check(span: Span, example: Example, trained: list[int]) -> None:
    shown = span_text(*span, several=True)
    if span.turn not in trained:
        turns = ", ".join(str(turn + 1) for turn in trained) or "none"
        raise ValueError(f"{shown}: turn {span.turn + 1} is not trained; trained turns: {turns}")
    length = len(example.messages[span.turn]["content"] or "")
    if not span.start < span.end <= length:
        raise ValueError(f"{shown} is not inside the text, which has {length} characters, or is empty")
