"""The curriculum that selection creates: the categories of selected tokens, and uncertainty over training."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.tables.schemas import TOKEN_KEY


@dataclass(frozen=True)
class Snapshot:
    """The adapter after a share of training."""

    fraction: float
    step: int
    folder: Path | None
    """None for the fresh adapter at step 0."""


class MeasuredSnapshot(NamedTuple):
    """What is measured of a snapshot on a fixed set of examples."""

    snapshot: Snapshot
    losses: pl.DataFrame
    """Rows of `score_examples`."""
    uncertainty: pl.DataFrame
    """Rows of `token_uncertainty`."""


def selected_by_category(selections: pl.DataFrame, token_losses: pl.DataFrame) -> pl.DataFrame:
    """Return the table `curriculum`: tokens and selected tokens of each category at each step."""
    categories = token_losses.select(*TOKEN_KEY, pl.col("category").cast(pl.String))
    return (
        selections.join(categories, on=TOKEN_KEY, how="inner", validate="m:1")
        .group_by("step", "epoch", "category")
        .agg(
            n_tokens=pl.len().cast(pl.Int32),
            n_selected=pl.col("selected").sum().cast(pl.Int32),
            mean_loss=pl.col("loss").mean(),
        )
        .sort("step", "category")
    )


def first_by_id(examples: Iterable[TokenizedExample], count: int) -> list[TokenizedExample]:
    """Return the first `count` examples by id: the same ones for every ablation of a study."""
    return sorted(examples, key=lambda example: example.example_id)[:count]


def snapshot_at(fraction: float, steps: int, adapter: Path, snapshots: Path) -> Snapshot:
    """Return the snapshot after a share of `steps`: the fresh adapter, a stored snapshot, or the trained adapter.

    Args:
        fraction: share of training, 0 to 1.
        steps: optimiser steps of the training.
        adapter: folder of the trained adapter.
        snapshots: folder of the snapshots that training wrote.

    Raises:
        FileNotFoundError: training wrote no snapshot of that step.
    """
    step = round(fraction * steps)
    if step <= 0:
        return Snapshot(fraction, 0, None)
    if step >= steps:
        return Snapshot(fraction, steps, adapter)
    folder = snapshots / f"step-{step:06d}"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no snapshot of step {step}; materialise the student again")
    return Snapshot(fraction, step, folder)


def distinct_snapshots(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """Return the snapshots, of several at the same step only the first."""
    by_step: dict[int, Snapshot] = {}
    for snapshot in snapshots:
        by_step.setdefault(snapshot.step, snapshot)
    return list(by_step.values())


def uncertainty_at(measured: MeasuredSnapshot, token_losses: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of `curriculum_uncertainty` for one snapshot: one per category, and one for `all`."""
    snapshot, losses, uncertainty = measured
    categories = token_losses.select(*TOKEN_KEY, pl.col("category").cast(pl.String))
    tokens = losses.join(uncertainty, on=TOKEN_KEY, validate="1:1").join(categories, on=TOKEN_KEY, validate="1:1")
    figures = [
        pl.len().cast(pl.Int32).alias("n_tokens"),
        *(pl.col(name).mean() for name in ("loss", "predictive_entropy", "expected_entropy", "bald")),
    ]
    by_category = tokens.group_by("category").agg(figures)
    overall = tokens.select(figures).select(pl.lit("all").alias("category"), pl.all())
    return pl.concat([overall, by_category]).select(
        pl.lit(snapshot.fraction, pl.Float32).alias("fraction"),
        pl.lit(snapshot.step, pl.Int32).alias("step"),
        pl.all(),
    )


def uncertainty_over_training(
    measured: Iterable[MeasuredSnapshot], token_losses: pl.DataFrame, progress: Callable[[str], None]
) -> pl.DataFrame:
    """Return the table `curriculum_uncertainty`.

    Args:
        measured: the snapshots, in order of steps.
        token_losses: at least `example_id, position, category` of the examples' tokens.
        progress: receives one line per snapshot.
    """
    frames = []
    for one in measured:
        frame = uncertainty_at(one, token_losses)
        overall = frame.filter(pl.col("category") == "all").row(0, named=True)
        progress(f"at {one.snapshot.fraction:.0%} of training: loss {overall['loss']:.3f}, BALD {overall['bald']:.5f}")
        frames.append(frame)
    return pl.concat(frames)
