"""Correlations of loss, entropy and BALD: is the loss a proxy of epistemic uncertainty?

Takes the joined token tables; computes no uncertainty itself.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.seeding import bootstrap_generator

COLUMNS = ("loss", "entropy", "bald", "expected_entropy")
PAIRS = (
    ("loss", "bald"),
    ("entropy", "bald"),
    ("loss", "entropy"),
    ("loss", "expected_entropy"),
    ("bald", "expected_entropy"),
)
_TRIANGLE = [(i, j) for i in range(len(COLUMNS)) for j in range(i, len(COLUMNS))]
_NEGLIGIBLE = 1e-12
"""Variance, relative to that of all tokens, below which a resample counts as constant."""
CHUNK_COUNTS = 1 << 22
"""Counts of drawn examples held at once, which bounds the memory for any number of examples."""
Array = NDArray[np.float64]


class Statistic(NamedTuple):
    """A correlation of two columns of `COLUMNS`."""

    method: str
    """`pearson`, `spearman` or `partial_spearman`."""
    x: str
    y: str
    given: str | None = None
    """Column whose effect a partial correlation removes."""

    @property
    def scale(self) -> str:
        """`pearson` for values, `spearman` for ranks."""
        return self.method.removeprefix("partial_")


_STATISTICS = [Statistic(method, x, y) for method in ("pearson", "spearman") for x, y in PAIRS]
_STATISTICS.append(Statistic("partial_spearman", "loss", "bald", "entropy"))


def correlation_table(tokens: pl.DataFrame, evaluation: EvaluationSpec) -> pl.DataFrame:
    """Return the table `uncertainty_analysis`: correlations for each split and category, and for `all` of them.

    Intervals (for all categories together) are percentile bootstrap intervals over examples, because tokens of one
    example are not independent. Ranks are computed once over the sample, not in each resample: a resample then needs
    only sums of products per example, so that its cost does not grow with the number of tokens.

    Args:
        tokens: `token_losses` joined with `token_uncertainty`.
        evaluation: Resamples, confidence and seed of the intervals.

    Returns:
        `value`, `ci_low` and `ci_high` per split, category, pair of columns and method. Null where not defined: fewer
        than 3 tokens, or a constant column.
    """
    tokens = tokens.select("example_id", "split", "category", *COLUMNS).with_columns(
        pl.col("split", "category").cast(pl.String)
    )
    rows = []
    for split in ("all", *sorted(tokens["split"].unique())):
        of_split = tokens if split == "all" else tokens.filter(pl.col("split") == split)
        for category in ("all", *sorted(of_split["category"].unique())):
            part = of_split if category == "all" else of_split.filter(pl.col("category") == category)
            for row in _correlations(part, evaluation if category == "all" else None):
                rows.append({"split": split, "category": category, **row, "n": len(part)})
    return pl.DataFrame(
        rows,
        schema={
            "split": pl.String,
            "category": pl.String,
            "x": pl.String,
            "y": pl.String,
            "method": pl.String,
            "value": pl.Float64,
            "ci_low": pl.Float64,
            "ci_high": pl.Float64,
            "n": pl.Int32,
        },
    )


def _correlations(tokens: pl.DataFrame, evaluation: EvaluationSpec | None) -> list[dict]:
    """Return one row per statistic; without `evaluation`, without intervals."""
    if len(tokens) < 3:
        undefined = {"value": None, "ci_low": None, "ci_high": None}
        return [{"x": one.x, "y": one.y, "method": one.method, **undefined} for one in _STATISTICS]

    correlations = Correlations(tokens, evaluation)
    return [{"x": one.x, "y": one.y, "method": one.method, **correlations.of(one)} for one in _STATISTICS]


class Correlations:
    """Correlations of the columns of some tokens, and of each bootstrap sample of their examples.

    Args:
        tokens: at least 3, with `example_id` and `COLUMNS`.
        evaluation: resamples, confidence and seed of the intervals; None: no intervals.
    """

    def __init__(self, tokens: pl.DataFrame, evaluation: EvaluationSpec | None):
        values = np.stack([tokens[name].to_numpy().astype(np.float64) for name in COLUMNS])
        ranks = np.stack([tokens[name].rank("average").to_numpy().astype(np.float64) for name in COLUMNS])
        clusters = tokens["example_id"].rank("dense").to_numpy().astype(np.int64) - 1
        self._sums = {"pearson": _cluster_sums(values, clusters), "spearman": _cluster_sums(ranks, clusters)}
        self._confidence = 0.0 if evaluation is None else evaluation.confidence
        self._resampled: dict[str, Array] | None = None
        if evaluation is not None:
            both = resampled_sums(np.concatenate(list(self._sums.values()), axis=1), evaluation)
            self._resampled = dict(zip(self._sums, np.split(both, 2, axis=1), strict=True))

    def of(self, statistic: Statistic) -> dict[str, float | None]:
        """Return `value`, `ci_low` and `ci_high` of a correlation; None where not defined."""
        value = self._value(statistic)
        drawn = None if self._resampled is None else _correlation(self._resampled[statistic.scale], statistic)
        return self._numbers(value, drawn)

    def difference(self, statistic: Statistic, other: Statistic) -> dict[str, float | None]:
        """Return the same of one correlation minus another one, in the same bootstrap samples."""
        value = self._value(statistic) - self._value(other)
        drawn = None
        if self._resampled is not None:
            of, minus = (_correlation(self._resampled[one.scale], one) for one in (statistic, other))
            drawn = of - minus
        return self._numbers(value, drawn)

    def _value(self, statistic: Statistic) -> float:
        return float(_correlation(self._sums[statistic.scale].sum(0, keepdims=True), statistic)[0])

    def _numbers(self, value: float, drawn: Array | None) -> dict[str, float | None]:
        low = high = np.nan
        if drawn is not None and np.isfinite(value):
            low, high = percentile_interval(drawn, self._confidence)
        numbers = {"value": value, "ci_low": low, "ci_high": high}
        return {name: float(number) if np.isfinite(number) else None for name, number in numbers.items()}


def percentile_interval(drawn: Array, confidence: float) -> tuple[float, float]:
    """Return the ends of the percentile interval; NaN if no resample has a correlation, as a constant one has none."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return low, high


def _cluster_sums(columns: Array, clusters: NDArray[np.int64]) -> Array:
    """Return `[clusters, 15]`: count, sums and sums of products (upper triangle, by rows) per cluster.

    Standardises the columns over all tokens first, which changes no correlation. The sums then lose no digits, and one
    threshold separates constants from small numbers (BALD is often 1e-6 nats).

    Args:
        columns: `[4, tokens]`.
        clusters: Number of the example of each token.
    """
    centred = columns - columns.mean(1, keepdims=True)
    constant = columns.max(1, keepdims=True) == columns.min(1, keepdims=True)
    scale = np.where(constant, 1.0, np.sqrt((centred**2).mean(1, keepdims=True)))
    # Exactly zero: the mean of equal numbers may have a rounding error.
    standard = np.where(constant, 0.0, centred / np.where(scale > 0, scale, 1.0))
    products = [standard[i] * standard[j] for i, j in _TRIANGLE]
    return np.stack(
        [
            np.bincount(clusters).astype(np.float64),
            *(np.bincount(clusters, column) for column in standard),
            *(np.bincount(clusters, product) for product in products),
        ],
        axis=1,
    )


def resampled_sums(sums: Array, evaluation: EvaluationSpec) -> Array:
    """Return the sums of each bootstrap sample, one per row: all clusters, drawn with replacement."""
    clusters = len(sums)
    draws = bootstrap_generator(evaluation.seed)
    chances = np.full(clusters, 1 / clusters)
    rows = max(1, CHUNK_COUNTS // clusters)
    parts = [
        draws.multinomial(clusters, chances, size=min(rows, evaluation.bootstrap - start)).astype(np.float64) @ sums
        for start in range(0, evaluation.bootstrap, rows)
    ]
    return np.concatenate(parts)


def _correlation(sums: Array, statistic: Statistic) -> Array:
    """Return the correlation for each row of `_cluster_sums`; NaN where it is not defined.

    A partial correlation is `(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))`, not defined where x or y is a
    function of z.
    """
    method, x, y, given = statistic
    if given is not None:
        pairs = ((x, y), (x, given), (y, given))
        xy, xz, yz = (_correlation(sums, Statistic(method, *pair)) for pair in pairs)
        left = np.minimum(1 - xz**2, 1 - yz**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            partial = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
        return np.where(left > _NEGLIGIBLE, np.clip(partial, -1, 1), np.nan)
    count = sums[:, 0]

    def covariance(a: str, b: str) -> Array:
        i, j = sorted((COLUMNS.index(a), COLUMNS.index(b)))
        return sums[:, 5 + _TRIANGLE.index((i, j))] / count - sums[:, 1 + i] * sums[:, 1 + j] / count**2

    variances = covariance(x, x), covariance(y, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.clip(covariance(x, y) / np.sqrt(variances[0] * variances[1]), -1, 1)
    return np.where(np.minimum(*variances) > _NEGLIGIBLE, correlation, np.nan)
