"""Quantities of a study's own tables, none of which needs the truth: what a rule of thumb may read.

All describe the study's teacher, an MLE training on the same data. Test examples have no part in them, because students
are compared on those. Does not import torch.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from polars.lazyframe.group_by import LazyGroupBy

from tokenuq_ml.advice.unseen_pairs import pair_counts
from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.scoring.correlations import Array, percentile_interval, resampled_sums
from tokenuq_ml.tables.scanning import scan

SURPRISE = 2.0
"""Nats by which the loss of a confident error exceeds the teacher's entropy."""
QUARTER = 0.25

Sums = Mapping[str, Array]
"""Name of a column of `_example_sums`, with its split -> its sum over all examples, once per resample."""


class Quantity(NamedTuple):
    """A quantity: what it is, and its value from sums over examples."""

    meaning: str
    unit: str
    value: Callable[[Sums], Array]


class Measured(NamedTuple):
    """The value of a quantity for a study, with its bootstrap interval over examples; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


QUANTITIES: Mapping[str, Quantity] = {
    "entropy_on_errors": Quantity(
        "mean teacher entropy on validation tokens that it gets wrong: low if it is wrong with confidence",
        "nats",
        lambda of: of["validation/error_entropy"] / of["validation/errors"],
    ),
    "error_share": Quantity(
        "share of validation tokens that are not the teacher's first choice",
        "",
        lambda of: of["validation/errors"] / of["validation/tokens"],
    ),
    "excess_share": Quantity(
        "share of the validation loss beyond the teacher's entropy: 0 if it is as surprised as it expects",
        "",
        lambda of: (of["validation/loss"] - of["validation/entropy"]) / of["validation/loss"],
    ),
    "confident_errors": Quantity(
        f"share of training tokens whose loss exceeds the teacher's entropy by {SURPRISE:g} nats, as wrong labels do",
        "",
        lambda of: of["train/confident_errors"] / of["train/tokens"],
    ),
    "top_quarter_loss": Quantity(
        "share of the training loss that the quarter of tokens with the highest loss holds",
        "",
        lambda of: of["train/top_loss"] / of["train/loss"],
    ),
    "bald_share": Quantity(
        "BALD as a share of the predictive entropy of training tokens: how much of the uncertainty is epistemic",
        "",
        lambda of: of["train/bald"] / of["train/predictive_entropy"],
    ),
    "loss_gap": Quantity(
        "1 - training loss / validation loss of the teacher: what it memorised",
        "",
        lambda of: 1 - (of["train/loss"] / of["train/tokens"]) / (of["validation/loss"] / of["validation/tokens"]),
    ),
    "learned": Quantity(
        "1 - validation loss of the teacher / of the base model: how much there was to learn",
        "",
        lambda of: 1 - of["validation/loss"] / of["validation/base_loss"],
    ),
    "forgotten": Quantity(
        "out-of-distribution loss of the teacher / of the base model - 1: what MLE gives up there",
        "",
        lambda of: of["ood/loss"] / of["ood/base_loss"] - 1,
    ),
    "unseen_pairs": Quantity(
        "share of the validation texts' neighbouring tokens that no training text has: how rare the data's parts are",
        "",
        lambda of: of["validation/unseen_pairs"] / of["validation/pairs"],
    ),
}
"""Name -> quantity. A rule may read any of them, and names it as here."""

INTERVALS = EvaluationSpec()
"""Resamples, confidence and seed of the intervals: those of a study's evaluations by default."""


def study_quantities(
    home: str | Path | None, study: str, intervals: EvaluationSpec | None = INTERVALS
) -> dict[str, Measured]:
    """Return name -> value and interval of every quantity of a study.

    Intervals are percentile bootstrap intervals over the examples of each split.

    Args:
        home: the store.
        study: its name.
        intervals: how they are drawn; None: without intervals.

    Raises:
        InputError: the study has no token tables.
    """
    sums = {split: table for split, table in _example_sums(home, study).items() if len(table)}
    once: dict[str, Array] = {}
    drawn: dict[str, Array] = {}
    for number, (split, table) in enumerate(sums.items()):
        values = table.drop("example_id").to_numpy().astype(np.float64)
        names = [f"{split}/{name}" for name in table.columns if name != "example_id"]
        once |= dict(zip(names, values.sum(0, keepdims=True).T, strict=True))
        if intervals is not None:
            resampled = resampled_sums(values, intervals.model_copy(update={"seed": intervals.seed + number}))
            drawn |= dict(zip(names, resampled.T, strict=True))
    confidence = intervals.confidence if intervals is not None else None
    return {name: _measured(quantity, once, drawn, confidence) for name, quantity in QUANTITIES.items()}


def _measured(quantity: Quantity, once: Sums, drawn: Sums, confidence: float | None) -> Measured:
    """Return a quantity from the sums of all examples, and of each resample; undefined if the study lacks a part."""
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = quantity.value(once)[0]
            ends = (np.nan, np.nan)
            if confidence is not None and np.isfinite(value):
                ends = percentile_interval(quantity.value(drawn), confidence)
    except KeyError:
        return Measured(None, None, None)
    return Measured(*(float(number) if np.isfinite(number) else None for number in (value, *ends)))


def _example_sums(home: str | Path | None, study: str) -> dict[str, pl.DataFrame]:
    """Return split -> one row per example, with the sums over its tokens that quantities are made of.

    Sums of a table that the study lacks are left out.
    """
    losses = _table("token_losses", home, study)
    if losses is None:
        raise InputError(
            f"study {study!r} has no table token_losses, which advice is read from; run "
            f"`tokenuq run --study {study}`, or name its store in TOKENUQ_HOME"
        )
    found = {
        "train": _with_uncertainty(_train_sums(losses), _table("token_uncertainty", home, study)),
        "validation": _with_pairs(_validation_sums(losses), _table("tokenized_dataset", home, study)),
        "ood": _of_split(losses, "ood").agg(loss=LOSS.sum(), base_loss=BASE_LOSS.sum()).collect(engine="streaming"),
    }
    return {name: table.sort("example_id") for name, table in found.items()}


def _table(name: str, home: str | Path | None, study: str) -> pl.LazyFrame | None:
    try:
        return scan(name, home, study=study)
    except FileNotFoundError:
        return None


LOSS, ENTROPY, BASE_LOSS = (pl.col(name).cast(pl.Float64) for name in ("loss", "entropy", "base_loss"))


def _of_split(losses: pl.LazyFrame, split: str) -> LazyGroupBy:
    return losses.filter(pl.col("split").cast(pl.String) == split).group_by("example_id")


def _train_sums(losses: pl.LazyFrame) -> pl.DataFrame:
    of_train = losses.filter(pl.col("split").cast(pl.String) == "train")
    # The smallest loss of the quarter. If several tokens have it, all of them count.
    border = of_train.select(LOSS.quantile(1 - QUARTER, "higher")).collect(engine="streaming").item()
    sums = _of_split(losses, "train").agg(
        tokens=pl.len(),
        loss=LOSS.sum(),
        confident_errors=(LOSS - ENTROPY > SURPRISE).sum(),
        top_loss=LOSS.filter(LOSS >= border).sum() if border is not None else pl.lit(0.0),
    )
    return sums.collect(engine="streaming")


def _with_uncertainty(train: pl.DataFrame, uncertainty: pl.LazyFrame | None) -> pl.DataFrame:
    """Add the sums of BALD and predictive entropy of each training example."""
    if uncertainty is None:
        return train
    sums = uncertainty.group_by("example_id").agg(pl.col("bald", "predictive_entropy").cast(pl.Float64).sum())
    return train.lazy().join(sums, on="example_id").collect(engine="streaming")


def _validation_sums(losses: pl.LazyFrame) -> pl.DataFrame:
    error = pl.col("rank") > 0
    sums = _of_split(losses, "validation").agg(
        tokens=pl.len(),
        errors=error.sum(),
        error_entropy=ENTROPY.filter(error).sum(),
        loss=LOSS.sum(),
        entropy=ENTROPY.sum(),
        base_loss=BASE_LOSS.sum(),
    )
    return sums.collect(engine="streaming")


def _with_pairs(validation: pl.DataFrame, texts: pl.LazyFrame | None) -> pl.DataFrame:
    """Add the pairs of each example, and those that training lacks."""
    if texts is None:
        return validation
    counted = validation.join(pair_counts(texts), on="example_id", how="left")
    return counted.with_columns(pl.col("pairs", "unseen_pairs").fill_null(0))
