"""How well scores rank tokens by their divergence from the truth: what epistemic uncertainty should look like.

Takes columns of tables; computes no score itself.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.scoring.correlations import Array, percentile_interval, resampled_sums

QUARTER = 0.25
TRUTH, TRUE_ENTROPY = "true_kl", "true_entropy"
STATISTICS = ("spearman_true_kl", "spearman_true_entropy", "auroc_top_quarter", "top_quarter_share")

RANKING_SCHEMA = {
    "split": pl.String,
    "slot": pl.String,
    "score": pl.String,
    "statistic": pl.String,
    "value": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int32,
}
"""The columns of `truth_ranking`, without the fraction of training."""
_NEGLIGIBLE = 1e-12
"""Variance of standardised ranks below which a resample counts as constant."""


def ranking_rows(tokens: pl.DataFrame, scores: Sequence[str], evaluation: EvaluationSpec) -> pl.DataFrame:
    """Return how well each score ranks the tokens of each split and slot, and of `all` of them.

    - `spearman_true_kl`, `spearman_true_entropy`: rank correlation with the divergence, and with the entropy of the
      true distribution (aleatoric uncertainty).
    - `auroc_top_quarter`: chance that a token of the quarter with the largest divergence has a higher score than
      another one, equal scores counting one half.
    - `top_quarter_share`: share of the sum of all divergences that the quarter with the highest scores holds. Of
      equal scores at its border, each counts in part. That of `true_kl` itself is the best possible.

    Intervals (for all slots together) are percentile bootstrap intervals over examples. Ranks and quarters are those
    of the sample, not of each resample, as in `correlations.py`.

    Args:
        tokens: `example_id, position, split, slot, true_kl, true_entropy` and the scores, without nulls.
        scores: names of columns; `true_kl` is added.
        evaluation: resamples, confidence and seed of the intervals.

    Returns:
        Columns RANKING_SCHEMA. Values are null where not defined: fewer than 4 tokens, a constant score, no divergence.
    """
    names = list(dict.fromkeys((*scores, TRUTH)))
    tokens = tokens.select(
        pl.col("example_id", "split", "slot").cast(pl.String),
        "position",
        *(pl.col(name).cast(pl.Float64) for name in dict.fromkeys((*names, TRUE_ENTROPY))),
    ).sort("example_id", "position")
    rows = []
    for split in ("all", *sorted(tokens["split"].unique())):
        of_split = tokens if split == "all" else tokens.filter(split=split)
        for slot in ("all", *sorted(of_split["slot"].unique())):
            part = of_split if slot == "all" else of_split.filter(slot=slot)
            found = _statistics(part, names, evaluation if slot == "all" else None)
            for (score, statistic), numbers in found.items():
                place = {"split": split, "slot": slot, "score": score, "statistic": statistic}
                rows.append({**place, **numbers, "n": len(part)})
    return pl.DataFrame(rows, schema=RANKING_SCHEMA)


Numbers = dict[str, float | None]


def _statistics(
    tokens: pl.DataFrame, scores: Sequence[str], evaluation: EvaluationSpec | None
) -> Mapping[tuple[str, str], Numbers]:
    """Return value and interval of every statistic of every score; without `evaluation`, without intervals."""
    undefined: Numbers = {"value": None, "ci_low": None, "ci_high": None}
    if len(tokens) < 4:
        return {(score, statistic): undefined for score in scores for statistic in STATISTICS}
    clusters = tokens["example_id"].rank("dense").to_numpy().astype(np.int64) - 1
    parts = [_ClusterSums.of(tokens, score, clusters) for score in scores]
    resampled: Sequence[Array | None] = [None] * len(scores)
    if evaluation is not None:
        drawn = resampled_sums(np.concatenate([part.sums for part in parts], axis=1), evaluation)
        resampled = np.split(drawn, len(scores), axis=1)
    found = {}
    for score, part, draws in zip(scores, parts, resampled, strict=True):
        values = part.statistics(part.sums.sum(0, keepdims=True))
        intervals = None if draws is None else part.statistics(draws)
        for statistic in STATISTICS:
            value, ends = values[statistic][0], (np.nan, np.nan)
            if evaluation is not None and intervals is not None and np.isfinite(value):
                ends = percentile_interval(intervals[statistic], evaluation.confidence)
            numbers = zip(undefined, (value, *ends), strict=True)
            found[score, statistic] = {name: float(number) if np.isfinite(number) else None for name, number in numbers}
    return found


class _ClusterSums(NamedTuple):
    """Sums over the tokens of each example, from which all statistics of one score follow."""

    sums: Array
    """`[clusters, 14]`; see `of`."""
    tokens: int
    is_constant: bool

    @classmethod
    def of(cls, tokens: pl.DataFrame, score: str, clusters: NDArray[np.int64]) -> "_ClusterSums":
        """Return the sums of a score."""
        rank = _ranks(tokens[score])
        truth, entropy = (_standard(_ranks(tokens[name])) for name in (TRUTH, TRUE_ENTROPY))
        own, kl = _standard(rank), tokens[TRUTH].to_numpy()
        is_top = _first_of_top(kl)
        columns = [
            np.ones(len(kl)),
            *(own, truth, entropy),
            *(own**2, truth**2, entropy**2),
            *(own * truth, own * entropy),
            *(is_top, is_top * rank, (1 - is_top) * rank),
            _top_weights(tokens[score].to_numpy()) * kl,
            kl,
        ]
        sums = np.stack([np.bincount(clusters, column) for column in columns], axis=1)
        return cls(sums.astype(np.float64), len(kl), bool(rank.max() == rank.min()))

    def statistics(self, sums: Array) -> dict[str, Array]:
        """Return each statistic for each row of sums; NaN where it is not defined."""
        n, s, t, h, ss, tt, hh, st, sh, top, top_rank, rest_rank, held, kl = sums.T
        with np.errstate(divide="ignore", invalid="ignore"):
            # The difference of mean ranks of the two groups is N (AUROC - 1/2).
            auroc = 0.5 + (top_rank / top - rest_rank / (n - top)) / self.tokens
            share = held / kl
        undefined = np.full(len(n), np.nan)
        return {
            "spearman_true_kl": _correlation(n, s, t, ss, tt, st),
            "spearman_true_entropy": _correlation(n, s, h, ss, hh, sh),
            "auroc_top_quarter": undefined if self.is_constant else auroc,
            "top_quarter_share": share,
        }


def _correlation(n: Array, s: Array, t: Array, ss: Array, tt: Array, st: Array) -> Array:
    variances = ss / n - (s / n) ** 2, tt / n - (t / n) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.clip((st / n - s * t / n**2) / np.sqrt(variances[0] * variances[1]), -1, 1)
    return np.where(np.minimum(*variances) > _NEGLIGIBLE, correlation, np.nan)


def _ranks(column: pl.Series) -> Array:
    return column.rank("average").to_numpy().astype(np.float64)


def _standard(rank: Array) -> Array:
    """Return ranks with mean 0 and variance 1; zeros if they are all equal."""
    if rank.max() == rank.min():
        return np.zeros_like(rank)
    return (rank - rank.mean()) / rank.std()


def _top_weights(score: Array) -> Array:
    """Return 1 for the quarter with the highest scores, 0 for others, and a share for equal ones at the border."""
    size = count_selected(QUARTER, len(score))
    border = np.sort(score)[-size]
    above, equal = score > border, score == border
    return above + equal * ((size - above.sum()) / equal.sum())


def _first_of_top(score: Array) -> Array:
    """Return 1 for the quarter with the highest scores; of equal scores, the earlier are taken."""
    weights = np.zeros(len(score))
    weights[np.argsort(-score, kind="stable")[: count_selected(QUARTER, len(score))]] = 1.0
    return weights
