"""From each example's part of a metric to the rows of `evaluations`.

Every metric is a ratio of sums over examples, which `held_out.py`, `ifeval.py` and others provide.
"""

from collections.abc import Mapping
from types import MappingProxyType

import polars as pl
from numpy.typing import ArrayLike

from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.evaluation.bootstrap import bootstrap_ratio

KEYS = ["dataset", "split", "metric"]
LOWER_IS_BETTER = frozenset({"loss", "calibration_error", "true_kl", "clean_kl"})
NO_DIRECTION = frozenset({"loss_change", "entropy_change", "position_bias"})
"""Metrics that say nothing about which model is better: changes from the teacher, and the bias of the judge."""
BY_SLOT = ("true_kl_", "clean_kl_")
"""How metrics begin that are of the tokens of one slot of a synthetic language; lower is better."""
JUDGED = frozenset({"win_rate", "length_controlled_win_rate", "position_bias"})
"""Metrics that leave out examples without a verdict."""
WIN_RATE_VERSUS, BIAS_VERSUS = "win_rate_vs_", "position_bias_vs_"
"""How metrics begin that compare outputs with those of another model of the study, whose name follows."""
LM_EVAL = "lm_eval/"
"""How the datasets of lm-eval's tasks and groups begin."""

IS_OF_SLOT = pl.any_horizontal(pl.col("metric").str.starts_with(start) for start in BY_SLOT)
"""Whether a row is of such a metric."""

EXAMPLE_SCHEMA = {
    "example_id": pl.String,
    "dataset": pl.String,
    "split": pl.String,
    "metric": pl.String,
    "numerator": pl.Float64,
    "denominator": pl.Float64,
}
"""The columns of `evaluation_examples`."""

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
"""The columns of `evaluations` without those that identify the model."""


def example_rows(
    dataset: str, split: str, metric: str, example_ids: pl.Series, numerators: ArrayLike, denominators: ArrayLike
) -> pl.DataFrame:
    """Return each example's part of one metric; columns EXAMPLE_SCHEMA. The last three arguments are `[n]`."""
    return pl.DataFrame(
        {
            "example_id": example_ids,
            "dataset": [dataset] * len(example_ids),
            "split": [split] * len(example_ids),
            "metric": [metric] * len(example_ids),
            "numerator": numerators,
            "denominator": denominators,
        },
        schema_overrides=EXAMPLE_SCHEMA,
    )


def metric_rows(
    examples: pl.DataFrame,
    evaluation: EvaluationSpec,
    directions: Mapping[tuple[str, str], bool | None] = MappingProxyType({}),
) -> pl.DataFrame:
    """Return each metric's value, `sum(numerator) / sum(denominator)`, with its bootstrap interval over examples.

    Args:
        examples: columns EXAMPLE_SCHEMA, in any order; sorted here, since the order decides what a resample draws.
        evaluation: resamples, confidence and seed of the intervals.
        directions: (dataset, metric) -> whether higher is better; of other metrics, the name says it.

    Returns:
        Columns METRIC_SCHEMA, sorted by dataset, split and metric.

    Raises:
        ValueError: a denominator is not positive, or a number is not finite.
    """
    rows = []
    ordered = examples.sort(*KEYS, "example_id")
    for (dataset, split, metric), group in ordered.partition_by(*KEYS, maintain_order=True, as_dict=True).items():
        value, low, high = bootstrap_ratio(
            group["numerator"].to_numpy(),
            group["denominator"].to_numpy(),
            resamples=evaluation.bootstrap,
            confidence=evaluation.confidence,
            seed=evaluation.seed,
        )
        rows.append(
            {
                "dataset": dataset,
                "split": split,
                "metric": metric,
                "value": value,
                "ci_low": low,
                "ci_high": high,
                "n": len(group),
                "higher_is_better": directions.get((dataset, metric), _higher_is_better(metric)),
            }
        )
    return pl.DataFrame(rows, schema=METRIC_SCHEMA)


def _higher_is_better(metric: str) -> bool | None:
    if metric in NO_DIRECTION or metric.startswith(BIAS_VERSUS):
        return None
    return not (metric in LOWER_IS_BETTER or metric.startswith(BY_SLOT))


def may_lack_examples(dataset: str, metric: str) -> bool:
    """Return whether a metric may leave out some examples of one model and not of another.

    A judge may give no verdict on some outputs, and a task of lm-eval may give some samples no value.
    """
    return metric in JUDGED or metric.startswith((WIN_RATE_VERSUS, BIAS_VERSUS)) or dataset.startswith(LM_EVAL)


def with_identity(metrics: pl.DataFrame, family: str, seed: int | None) -> pl.DataFrame:
    """Add the columns `family` (the ablation without its seed) and `seed` (null for the base model) in front."""
    return metrics.select(pl.lit(family, pl.String).alias("family"), pl.lit(seed, pl.Int32).alias("seed"), pl.all())
