"""Lengths of a dataset's rows in tokens: measured, estimated from its first rows, or assumed for its format."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from tokenuq_ml.config import CuratedDatasetSpec, DatasetSpec
from tokenuq_ml.config.split_sizes import are_counts
from tokenuq_ml.costs.dataset_rows import FIRST_ROWS, expected_rows, rows_of_mix
from tokenuq_ml.data import load
from tokenuq_ml.data.examples import TEXT_ROLE
from tokenuq_ml.data.generated import GENERATED
from tokenuq_ml.errors import InputError

CHARACTERS_PER_TOKEN = {"gsm8k": 2.5, "reasoning_gym": 2.5, "synthetic_language": 6.0}
"""By format; digits and calculator marks take tokens of their own."""
CHARACTERS_PER_TOKEN_OF_PROSE = 4.0
TURN_TOKENS = 8
"""Tokens that a chat template adds to a turn."""
ASSUMED_TOKENS = {
    "alpaca": (60, 60),
    "sharegpt": (400, 900),
    "gsm8k": (90, 120),
    "dolly": (120, 90),
    "messages": (300, 500),
    "prompt_completion": (100, 100),
    "reasoning_gym": (110, 90),
    "alpaca_eval": (60, 300),
    "ifeval": (60, 0),
    "raw_text": (0, 500),
    "synthetic_language": (18, 10),
}
"""Format -> tokens of a row's prompt and response, for datasets whose rows cannot be read."""

_may_generate: ContextVar[bool] = ContextVar("may_generate", default=True)


@contextmanager
def nothing_generated() -> Iterator[None]:
    """Assume the lengths of generated datasets inside the context: loading their packages takes seconds."""
    before = _may_generate.set(False)
    try:
        yield
    finally:
        _may_generate.reset(before)


@dataclass(frozen=True)
class Lengths:
    """Rows of one split of a dataset, and the tokens of its mean row after the cut at `max_length`."""

    rows: int
    tokens: float
    response: float
    """Response tokens, which are part of `tokens`."""
    squares: float
    """Mean of the squared length."""
    origin: str
    """Where the numbers come from."""

    @property
    def prompt(self) -> float:
        """Tokens of the mean prompt."""
        return self.tokens - self.response


def measured_lengths(tables: Iterable[Path]) -> dict[tuple[str, str], Lengths]:
    """Return (dataset, split) -> lengths, measured in partitions of `tokenized_dataset`.

    If several partitions have a split, the first one counts.
    """
    found: dict[tuple[str, str], Lengths] = {}
    for folder in tables:
        tokens = pl.col("input_ids").list.len().cast(pl.Float64)
        rows = (
            pl.scan_parquet(Path(folder, "part-*.parquet"))
            .group_by(pl.col("dataset").cast(pl.String), pl.col("split").cast(pl.String))
            .agg(
                pl.len(),
                tokens.mean().alias("tokens"),
                pl.col("response_mask").list.sum().mean().alias("response"),
                (tokens**2).mean().alias("squares"),
            )
        )
        for dataset, split, count, *means in rows.collect().iter_rows():
            found.setdefault((dataset, split), Lengths(count, *means, f"measured in {folder.name}"))
    return found


def lengths(
    spec: DatasetSpec,
    split: str,
    max_length: float,
    measured: Mapping[tuple[str, str], Lengths],
    datasets: Mapping[str, DatasetSpec] | None = None,
) -> Lengths:
    """Return the lengths of a split: as measured, else by the characters of its first rows, else by its format.

    Args:
        spec: the dataset.
        split: one of its splits.
        max_length: tokens after which rows are cut.
        measured: (dataset, split) -> lengths, of what is already tokenised.
        datasets: all datasets, for a mix.
    """
    if (spec.name, split) in measured:
        known = measured[spec.name, split]
        rows = expected_rows(spec, split, datasets or {})[0] if are_counts(spec.sizes) else known.rows
        return Lengths(rows, known.tokens, known.response, known.squares, known.origin)
    if isinstance(spec, CuratedDatasetSpec):
        # A reviewed file holds no rows of its own.
        spec = spec.original
    rows, origin = expected_rows(spec, split, datasets or {})
    if spec.mix:
        found = _mixed(spec, split, max_length, measured, datasets or {})
    else:
        found = _of_source(spec, split, rows, max_length)
    return replace(found, rows=rows, origin=f"{origin}; {found.origin}" if origin else found.origin)


def _mixed(
    spec: DatasetSpec,
    split: str,
    max_length: float,
    measured: Mapping[tuple[str, str], Lengths],
    datasets: Mapping[str, DatasetSpec],
) -> Lengths:
    """Return the mean lengths of a mix, by the rows that each dataset gives."""
    rows = rows_of_mix(spec, split, datasets)
    parts = {
        name: lengths(datasets[name], split, max_length, measured, datasets) for name, count in rows.items() if count
    }
    total = sum(rows[name] for name in parts)

    def weighted(field: str) -> float:
        return sum(rows[name] * getattr(one, field) for name, one in parts.items()) / max(total, 1)

    origins = ", ".join(f"{name} {one.origin}" for name, one in parts.items())
    return Lengths(total, weighted("tokens"), weighted("response"), weighted("squares"), f"a mix: {origins}")


def _of_source(spec: DatasetSpec, split: str, rows: int, max_length: float) -> Lengths:
    assumed = spec.on_hub or not rows or (spec.format in GENERATED and not _may_generate.get())
    try:
        sample = [] if assumed else load.first_conversations(spec, split, min(FIRST_ROWS, rows))
    except (InputError, OSError):
        sample = []
    return _estimated(spec, rows, sample, max_length) if sample else _assumed(spec, rows, max_length)


def _estimated(spec: DatasetSpec, rows: int, sample: list[list[dict[str, str]]], max_length: float) -> Lengths:
    """Estimate lengths by the characters of the first rows."""
    characters = CHARACTERS_PER_TOKEN.get(spec.format, CHARACTERS_PER_TOKEN_OF_PROSE)
    cut = [_cut(*_tokens(turns, characters), max_length) for turns in sample]
    mean = lambda values: sum(values) / len(cut)  # noqa: E731
    return Lengths(
        rows,
        mean([total for total, _ in cut]),
        mean([answer for _, answer in cut]),
        mean([total**2 for total, _ in cut]),
        f"estimated from its first {len(cut)} rows: {characters:g} characters per token, {TURN_TOKENS} tokens per turn",
    )


def _assumed(spec: DatasetSpec, rows: int, max_length: float) -> Lengths:
    """Assume the lengths of the dataset's format."""
    prompt, response = (tokens * spec.turns_joined for tokens in ASSUMED_TOKENS[spec.format])
    total, answer = _cut(prompt + response, response, max_length)
    origin = f"assumed for format {spec.format}: {prompt} + {response} tokens per row"
    return Lengths(rows, total, answer, total**2, origin)


def _tokens(turns: list[dict[str, str]], characters: float) -> tuple[float, float]:
    """Return the tokens of a conversation, and of its answers, each with the token that ends it."""
    if [turn["role"] for turn in turns] == [TEXT_ROLE]:
        every = len(turns[0]["content"]) / characters + 1
        return every, every
    answers = [len(turn["content"]) / characters + 1 for turn in turns if turn["role"] == "assistant"]
    return sum(len(turn["content"]) / characters for turn in turns) + TURN_TOKENS * len(turns), sum(answers)


def _cut(total: float, response: float, max_length: float) -> tuple[float, float]:
    """Cut both at `max_length`, in proportion."""
    kept = min(total, max_length)
    return kept, response * kept / total
