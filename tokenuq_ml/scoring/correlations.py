"""Is the loss a proxy of epistemic uncertainty? Correlations of loss, entropy and BALD.

Takes the joined token tables; computes no uncertainty itself.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.seeding import bootstrap_generator

PAIRS = (
    ("loss", "bald"),
    ("entropy", "bald"),
    ("loss", "entropy"),
    ("loss", "expected_entropy"),
    ("bald", "expected_entropy"),
)
COLUMNS = ("loss", "entropy", "bald", "expected_entropy")
_TRIANGLE = [(i, j) for i in range(len(COLUMNS)) for j in range(i, len(COLUMNS))]
_NEGLIGIBLE = 1e-12
"""A variance, relative to that of all tokens, below which a resample counts as constant."""
_CHUNK_COUNTS = 1 << 22
"""Counts of drawn examples held at once, which bounds the memory whatever the number of examples."""
Array = NDArray[np.float64]


def correlation_table(tokens: pl.DataFrame, evaluation: EvaluationSpec) -> pl.DataFrame:
    """The `uncertainty_analysis` table of `token_losses` joined with `token_uncertainty`.

    Every split and `all`, every category and `all`. Intervals, for `all` categories, are
    percentile bootstrap over examples, since tokens of one example are not independent.
    Ranks are taken once, over the sample, and not anew in each resample: a resample then
    needs only each example's sums of products, so that its cost does not grow with tokens.
    Null where not defined: fewer than 3 tokens, a constant column.
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
    statistics = [(method, x, y, None) for method in ("pearson", "spearman") for x, y in PAIRS]
    statistics.append(("partial_spearman", "loss", "bald", "entropy"))
    if len(tokens) < 3:
        nothing = {"value": None, "ci_low": None, "ci_high": None}
        return [{"x": x, "y": y, "method": method, **nothing} for method, x, y, _ in statistics]

    values = np.stack([tokens[name].to_numpy().astype(np.float64) for name in COLUMNS])
    ranks = np.stack([tokens[name].rank("average").to_numpy().astype(np.float64) for name in COLUMNS])
    clusters = tokens["example_id"].rank("dense").to_numpy().astype(np.int64) - 1
    sums = {"pearson": _cluster_sums(values, clusters), "spearman": _cluster_sums(ranks, clusters)}
    resampled = None
    if evaluation is not None:
        both = _resampled(np.concatenate(list(sums.values()), axis=1), evaluation)
        resampled = dict(zip(sums, np.split(both, 2, axis=1), strict=True))

    rows = []
    for method, x, y, given in statistics:
        kind = method.removeprefix("partial_")
        value = _correlation(sums[kind].sum(0, keepdims=True), x, y, given)[0]
        low = high = np.nan
        if resampled is not None and np.isfinite(value):
            drawn = _correlation(resampled[kind], x, y, given)
            # A resample may be constant, and have no correlation.
            drawn = drawn[np.isfinite(drawn)]
            if len(drawn):
                tail = (1 - evaluation.confidence) / 2
                low, high = np.quantile(drawn, [tail, 1 - tail])
        numbers = {"value": value, "ci_low": low, "ci_high": high}
        defined = {name: float(number) if np.isfinite(number) else None for name, number in numbers.items()}
        rows.append({"x": x, "y": y, "method": method, **defined})
    return rows


def _cluster_sums(columns: Array, clusters: NDArray[np.int64]) -> Array:
    """`[clusters, 15]`: count, sums and sums of products (upper triangle, by rows) of four columns `[4, tokens]`.

    Columns are standardised over all tokens first, which alters no correlation: the sums lose
    no digits, and one threshold tells a constant from a small number (BALD is often 1e-6 nats).
    """
    centred = columns - columns.mean(1, keepdims=True)
    constant = columns.max(1, keepdims=True) == columns.min(1, keepdims=True)
    scale = np.where(constant, 1.0, np.sqrt((centred**2).mean(1, keepdims=True)))
    # Exactly zero: the mean of equal numbers may be off by a rounding.
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


def _resampled(sums: Array, evaluation: EvaluationSpec) -> Array:
    """The sums of each bootstrap sample, one a row: as many clusters as there are, drawn with replacement."""
    clusters = len(sums)
    draws = bootstrap_generator(evaluation.seed)
    chances = np.full(clusters, 1 / clusters)
    rows = max(1, _CHUNK_COUNTS // clusters)
    parts = [
        draws.multinomial(clusters, chances, size=min(rows, evaluation.bootstrap - start)).astype(np.float64) @ sums
        for start in range(0, evaluation.bootstrap, rows)
    ]
    return np.concatenate(parts)


def _correlation(sums: Array, x: str, y: str, given: str | None) -> Array:
    """Correlation of x and y, one a row of `_cluster_sums`; NaN where it is not defined.

    With `given`: the partial correlation
    `(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))`, not defined where x or y is z itself.
    """
    if given is not None:
        xy, xz, yz = (_correlation(sums, *pair, None) for pair in ((x, y), (x, given), (y, given)))
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
