"""The table `truth_ranking`: scores of the teacher against its divergence from the truth, over its training.

Part of the child process `correlate.py`.
"""

from collections.abc import Iterator

import polars as pl

from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.scoring.truth_ranking import ranking_rows
from tokenuq_ml.stages.request import StageRequest
from tokenuq_ml.tables.estimate_schemas import BALD_COLUMNS
from tokenuq_ml.tables.parquet import read_table
from tokenuq_ml.tables.schemas import TOKEN_KEY

RANKING = "truth_ranking"
SCORES = {
    "loss": pl.col("loss"),
    "entropy": pl.col("entropy"),
    "base_loss": pl.col("base_loss"),
    "excess_loss": pl.col("loss") - pl.col("teacher_loss"),
    "loss_fall": pl.col("base_loss") - pl.col("loss"),
    "bald": pl.col("bald"),
    "aleatoric": pl.col("expected_entropy"),
    "true_entropy": pl.col("true_entropy"),
}
"""Score -> how it is computed at a step of the teacher's training. `excess_loss` is Rho-1's, against the trained
teacher; `loss_fall` is what training has gained so far."""
FURTHER = (*BALD_COLUMNS, "teacher_change")
"""Scores of the trained teacher that only some studies have."""


def rank_against_truth(request: StageRequest, tokens: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, float | None]]:
    """Return the table, and the headlines of the trained teacher.

    Args:
        request: of the stage, with the inputs `token_truth` and `true_divergence_over_training`.
        tokens: `token_losses` joined with `token_uncertainty`. Of the trained teacher, each of its columns that
            `FURTHER` names is a score too.
    """
    evaluation = EvaluationSpec(**request.assets["uncertainty_analysis"].fields["evaluation"])
    frames = [
        ranking_rows(rows, _scores(rows), evaluation).select(pl.lit(fraction, pl.Float32).alias("fraction"), pl.all())
        for fraction, rows in _snapshots(request, tokens)
    ]
    table = pl.concat(frames)
    overall = table.filter(fraction=1.0, split="all", slot="all")
    return table, {
        f"{statistic}_{score}": value
        for score, statistic, value in overall.select("score", "statistic", "value").iter_rows()
        if statistic in ("spearman_true_kl", "top_quarter_share")
    }


def _snapshots(request: StageRequest, tokens: pl.DataFrame) -> Iterator[tuple[float, pl.DataFrame]]:
    """Yield share of training and scored tokens, in order."""
    truth = read_table(request.inputs["token_truth"]).select(*TOKEN_KEY, "slot", "true_entropy")
    estimators = [name for name in FURTHER if name in tokens.columns]
    known = tokens.select(*TOKEN_KEY, "split", "base_loss", pl.col("loss").alias("teacher_loss"), *estimators).join(
        truth, on=TOKEN_KEY, validate="1:1"
    )
    over_training = read_table(request.inputs["true_divergence_over_training"])
    for (step,), rows in over_training.sort("step").group_by("step", maintain_order=True):
        scored = rows.join(known, on=TOKEN_KEY, validate="1:1")
        if not len(scored) == len(rows) == len(known):
            raise InputError(
                f"true_divergence_over_training has {len(rows):,} tokens at step {step}, and token_losses "
                f"{len(known):,} whose truth is known, with {len(scored):,} in common; materialise true_divergence "
                "again"
            )
        fraction, is_trained = float(rows["fraction"][0]), step == over_training["step"].max()
        columns = {**SCORES, **({name: pl.col(name) for name in estimators} if is_trained else {})}
        found = scored.select(
            *TOKEN_KEY,
            "split",
            "slot",
            "true_kl",
            **{name: column.cast(pl.Float64) for name, column in columns.items()},
        )
        yield fraction, found


def _scores(rows: pl.DataFrame) -> list[str]:
    """Return the scores that every token has; BALD of the base model has no value."""
    others = {*TOKEN_KEY, "split", "slot", "true_kl"}
    return [name for name in rows.columns if name not in others and not rows[name].null_count()]
