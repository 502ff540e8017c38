"""The table that a person reviews: suspect examples with scores, reasons in words, text, and empty decisions.

`data/curation.py` reads the decisions back. Does not import torch.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import polars as pl

from tokenuq_ml.data.curation import EMPTY_DECISIONS, SPANS_COLUMN, TRAINED_ROLES, span_text
from tokenuq_ml.data.examples import Example
from tokenuq_ml.scoring import suspects
from tokenuq_ml.scoring.repeats import near_repeats
from tokenuq_ml.scoring.token_spans import TokenSpan, locate_tokens, marked, merged
from tokenuq_ml.tables.schemas import TOKEN_KEY

OUTLIER = 3.5
"""Robust standard deviations from the median beyond which a change of loss is an outlier (Iglewicz, Hoaglin 1993)."""
TOKEN_SHARE, MOST_TOKENS = 0.01, 10
"""Share of the tokens that are marked as suspect, and the most that are marked in one example."""
SIGNALS = {
    "label noise": "tokens that the teacher is sure are others",
    "repeat": "near repeats of another example",
    "change": "outliers of the loss's change by training",
    "never selected": "selected by no ablation at any step",
}


@dataclass(frozen=True)
class StudyTables:
    """What a review reads of a study."""

    study: str
    tokens: pl.DataFrame
    """Both token tables joined, of the examples that are ranked."""
    examples: pl.DataFrame
    """The table `examples` of the dataset, all splits: an example may repeat one of another split."""
    selections: Mapping[str, pl.LazyFrame]
    """Ablation -> its table `selections`."""
    alternatives: pl.DataFrame
    """The table `token_alternatives`; has rows for held-out tokens only."""
    categories: Collection[str] | None = None
    """Score tokens of these categories only for label noise; None: all."""


def review_table(tables: StudyTables, top: float) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the table to review, and signal -> number of its examples.

    Examples with wrong labels come first, by score; then near repeats, then outliers of the loss's change, then
    examples that no ablation has selected. An example has one row with all its reasons.

    Args:
        tables: the study's.
        top: share of the examples that each signal may list.
    """
    scores = suspects.token_scores(tables.tokens, categories=tables.categories)
    examples, partial = _signals(tables, scores)
    most = max(1, math.ceil(top * len(examples)))
    flagged = {signal: _flagged(signal, examples, most) for signal in SIGNALS}
    order = list(dict.fromkeys(example_id for ids in flagged.values() for example_id in ids))
    rows = {row["example_id"]: row for row in examples.iter_rows(named=True)}
    writer = _RowWriter(tables, scores, flagged, partial)
    table = pl.DataFrame(
        [writer.row(rank, rows[example_id]) for rank, example_id in enumerate(order, 1)], schema=SCHEMA
    )
    return table, {signal: len(ids) for signal, ids in flagged.items()}


def _signals(tables: StudyTables, scores: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Return one row per ranked example with all its scores, and the ablations that leave tokens out."""
    shares, partial = suspects.selected_shares(tables.selections)
    # Examples of other splits first, so that a training example that repeats a held-out one is listed.
    ranked = pl.col("example_id").is_in(tables.tokens["example_id"].unique().to_list())
    texts = {
        row["example_id"]: "\n".join(turn["content"] or "" for turn in row["messages"])
        for row in tables.examples.sort(ranked, "example_id").iter_rows(named=True)
    }
    changes = suspects.loss_changes(tables.tokens)
    # An example without a token of the wanted categories has no score.
    examples = changes.join(suspects.example_scores(scores), on="example_id", how="left")
    examples = examples.join(shares, on="example_id", how="left")
    return examples.join(near_repeats(texts), on="example_id", how="left").sort("example_id"), partial


def _flagged(signal: str, examples: pl.DataFrame, most: int) -> list[str]:
    """Return the ids that a signal lists, the most suspect first."""
    found = {
        "label noise": (pl.col("score").is_not_null(), "score"),
        "repeat": (pl.col("repeat_of").is_not_null(), "similarity"),
        "change": (pl.col("change_score") > OUTLIER, "change_score"),
        "never selected": (pl.col("selected_share") == 0, "score"),
    }
    condition, by = found[signal]
    listed = examples.filter(condition).sort(by, "example_id", descending=[True, False], nulls_last=True)
    return listed.head(most)["example_id"].to_list()


SCHEMA = {
    "rank": pl.Int64,
    "example_id": pl.String,
    "study": pl.String,
    "split": pl.String,
    "reasons": pl.String,
    "question": pl.String,
    "answer": pl.String,
    "suspect_spans": pl.String,
    "score": pl.Float64,
    "loss": pl.Float64,
    "base_loss": pl.Float64,
    "change": pl.Float64,
    "bald": pl.Float64,
    "selected_share": pl.Float64,
    "repeat_of": pl.String,
    "similarity": pl.Float64,
    **EMPTY_DECISIONS,
    SPANS_COLUMN: pl.String,
}
"""Columns of the review. `EMPTY_DECISIONS` are for the reviewer; docs/curation.md explains all of them."""


class _RowWriter:
    """Writer of the review's rows."""

    def __init__(self, tables: StudyTables, scores: pl.DataFrame, flagged: Mapping[str, list[str]], partial: list[str]):
        self._flagged = {signal: set(ids) for signal, ids in flagged.items()}
        self._partial, self._study = partial, tables.study
        wanted = pl.col("example_id").is_in(list(set().union(*self._flagged.values())))
        self._threshold = scores["score"].quantile(1 - TOKEN_SHARE) or 0.0
        tokens = tables.tokens.join(scores, on=TOKEN_KEY, how="left").filter(wanted).sort(TOKEN_KEY)
        first = tables.alternatives.filter((pl.col("choice") == 0) & wanted)
        first = first.select(*TOKEN_KEY, pl.col("token").cast(pl.String).alias("choice"), "probability")
        tokens = tokens.join(first, on=TOKEN_KEY, how="left").with_columns(pl.col("token", "split").cast(pl.String))
        self._tokens = {key[0]: rows for key, rows in tokens.group_by("example_id", maintain_order=True)}
        self._examples = {row["example_id"]: row for row in tables.examples.iter_rows(named=True)}

    def row(self, rank: int, signals: dict) -> dict:
        """Return one row of the review."""
        example_id = signals["example_id"]
        example, tokens = Example.from_row(self._examples[example_id]), self._tokens[example_id]
        answers = [(turn, text) for turn, text in enumerate(_contents(example)) if _is_trained(example, turn)]
        spans = locate_tokens(list(tokens.select("position", "token").iter_rows()), answers)
        suspect = self._suspect_tokens(tokens)
        marks = merged([span for span in spans if span.position in set(suspect["position"])])
        return {
            "rank": rank,
            "study": self._study,
            **{name: signals[name] for name in SCHEMA if name in signals},
            "split": tokens["split"][0],
            "reasons": "; ".join(self._reasons(signals, suspect, {span.position: span for span in spans})),
            "question": _conversation(example, {turn for turn, _ in answers}),
            "answer": "\n\n".join(marked(text, turn, marks) for turn, text in answers),
            "suspect_spans": " ".join(span_text(*mark, several=len(answers) > 1) for mark in marks),
            **dict.fromkeys(EMPTY_DECISIONS),
            SPANS_COLUMN: json.dumps(spans, separators=(",", ":")),
        }

    def _suspect_tokens(self, tokens: pl.DataFrame) -> pl.DataFrame:
        """Return the example's scored tokens above the threshold, at least the first; the most suspect first."""
        scored = tokens.filter(pl.col("score").is_not_null())
        ordered = scored.sort("score", "position", descending=[True, False]).head(MOST_TOKENS)
        return ordered.filter((pl.col("score") >= self._threshold) | (pl.int_range(pl.len()) == 0))

    def _reasons(self, signals: dict, suspect: pl.DataFrame, spans: Mapping[int, TokenSpan]) -> list[str]:
        example_id, reasons = signals["example_id"], []
        if example_id in self._flagged["label noise"]:
            reasons.append("label noise: " + _token_words(suspect.row(0, named=True), spans))
        if signals["repeat_of"] is not None:
            other = self._examples[signals["repeat_of"]]
            reasons.append(f"repeats {signals['similarity']:.0%} of {signals['repeat_of']} ({other['split']})")
        if example_id in self._flagged["change"]:
            reasons.append(
                f"training changed its loss from {signals['base_loss']:.2f} to {signals['loss']:.2f} nats per token, "
                f"{signals['change_score']:.1f} deviations from the median example"
            )
        if signals["selected_share"] == 0:
            reasons.append(f"never selected by {', '.join(self._partial)}")
        return reasons


def _token_words(token: dict, spans: Mapping[int, TokenSpan]) -> str:
    span = spans.get(token["position"])
    where = f"token {token['position']}" if span is None else f"characters {span.start}..{span.end}"
    choice = ""
    if token["choice"] is not None and token["choice"] != token["token"]:
        choice = f", and {token['choice']!r} has probability {token['probability']:.2f}"
    return (
        f"{token['token']!r} ({where}) has probability {math.exp(-token['loss']):.2g} under the teacher, whose entropy "
        f"is {token['entropy']:.2f} nats{choice} (BALD {token['bald']:.2g})"
    )


def _contents(example: Example) -> list[str]:
    return [turn["content"] or "" for turn in example.messages]


def _is_trained(example: Example, turn: int) -> bool:
    weights = example.turn_weights
    return example.messages[turn]["role"] in TRAINED_ROLES and (weights is None or weights[turn] > 0)


def _conversation(example: Example, answers: set[int]) -> str:
    """Return the turns other than the trained ones; with their roles, unless there is only one."""
    others = (turn for number, turn in enumerate(example.messages) if number not in answers)
    turns = [(turn["role"], turn["content"] or "") for turn in others]
    return turns[0][1] if len(turns) == 1 else "\n\n".join(f"{role}: {text}" for role, text in turns)
