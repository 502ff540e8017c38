"""Loss and next-token accuracy on held-out responses, as rows of the `evaluations` table.

Knows the table's columns, which every metric of the package shares; does not know
which model scored the tokens, and never loads one.
"""

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from tokenuq_ml.evaluation.bootstrap import bootstrap_ratio
from tokenuq_ml.specs import EvaluationSpec

METRIC_SCHEMA = {
    "dataset": pl.String,
    "split": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int32,
    "higher_is_better": pl.Boolean,
}
"""The columns of `evaluations` that a metric has before it is known whose model it is of."""


def metric_row(
    dataset: str,
    split: str,
    metric: str,
    numerators: ArrayLike,
    denominators: ArrayLike,
    evaluation: EvaluationSpec,
    *,
    higher_is_better: bool,
) -> dict:
    """One row: a ratio of sums over examples (both `[n]`), with its bootstrap interval.

    Raises:
        ValueError: no example, or a denominator that is not positive.
    """
    value, low, high = bootstrap_ratio(
        numerators, denominators, resamples=evaluation.bootstrap, confidence=evaluation.confidence, seed=evaluation.seed
    )
    return {
        "dataset": dataset,
        "split": split,
        "metric": metric,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": len(numerators),
        "higher_is_better": higher_is_better,
    }


def held_out_metrics(tokens: pl.DataFrame, evaluation: EvaluationSpec) -> pl.DataFrame:
    """`loss` (mean nats a token) and `token_accuracy` (share of rank 0) of each dataset's test and ood split.

    Args:
        tokens: one row a response token, with `example_id, dataset, split, loss` (nats), `rank` (0 is the
            model's first choice), in any order; other columns and splits are ignored.
        evaluation: resamples, confidence and seed of the intervals.

    Returns:
        Columns METRIC_SCHEMA, by dataset, then split, then metric; no rows where nothing is held out.
    """
    columns = ["dataset", "split", "example_id", "loss", "rank"]
    held_out = tokens.select(pl.col(columns[:3]).cast(pl.String), *columns[3:])
    held_out = held_out.filter(pl.col("split").is_in(["test", "ood"])).sort(columns)
    rows = []
    for (dataset, split), group in held_out.partition_by("dataset", "split", maintain_order=True, as_dict=True).items():
        # numpy adds in row order: a polars sum may depend on the number of threads in its last bits.
        example = group["example_id"].rle_id().to_numpy()
        counts = np.bincount(example)
        losses = np.bincount(example, weights=group["loss"].to_numpy())
        hits = np.bincount(example, weights=(group["rank"] == 0).to_numpy())
        rows.append(metric_row(dataset, split, "loss", losses, counts, evaluation, higher_is_better=False))
        rows.append(metric_row(dataset, split, "token_accuracy", hits, counts, evaluation, higher_is_better=True))
    return pl.DataFrame(rows, schema=METRIC_SCHEMA)


def with_identity(metrics: pl.DataFrame, family: str, seed: int | None) -> pl.DataFrame:
    """The rows with `family` (the ablation without its seed) and `seed` (null for the base model) in front."""
    return metrics.select(pl.lit(family, pl.String).alias("family"), pl.lit(seed, pl.Int32).alias("seed"), pl.all())
