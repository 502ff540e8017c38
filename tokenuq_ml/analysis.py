"""Is the loss a proxy of epistemic uncertainty? Correlations of loss, entropy and BALD.

Takes the joined token tables; computes no uncertainty itself.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenuq_ml.specs import EvaluationSpec

PAIRS = (
    ("loss", "bald"),
    ("entropy", "bald"),
    ("loss", "entropy"),
    ("loss", "expected_entropy"),
    ("bald", "expected_entropy"),
)
COLUMNS = ("loss", "entropy", "bald", "expected_entropy")
Array = NDArray[np.float64]


def analyse(tokens: pl.DataFrame, evaluation: EvaluationSpec) -> pl.DataFrame:
    """The `uncertainty_analysis` table of `token_losses` joined with `token_uncertainty`.

    Every split and `all`, every category and `all`. Intervals, for `all` categories, are
    percentile bootstrap over examples, since tokens of one example are not independent.
    Ranks are taken once, over the sample, and not anew in each resample: a resample then
    needs only each example's sums of products, so that its cost does not grow with tokens.
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
    values = {name: tokens[name].to_numpy().astype(np.float64) for name in COLUMNS}
    ranks = {name: tokens[name].rank("average").to_numpy().astype(np.float64) for name in COLUMNS}
    examples = tokens["example_id"].rank("dense").to_numpy().astype(np.int64) - 1
    weights = None if evaluation is None else _resamples(int(examples.max()) + 1, evaluation)
    rows = []
    for method, columns in (("pearson", values), ("spearman", ranks)):
        for x, y in PAIRS:
            rows.append(_row(x, y, method, _statistic([columns[x], columns[y]], examples, weights, evaluation)))
    three = [ranks["loss"], ranks["bald"], ranks["entropy"]]
    rows.append(_row("loss", "bald", "partial_spearman", _statistic(three, examples, weights, evaluation)))
    return rows


def _row(x: str, y: str, method: str, outcome: tuple) -> dict:
    value, low, high = (None if number is None or not np.isfinite(number) else float(number) for number in outcome)
    return {"x": x, "y": y, "method": method, "value": value, "ci_low": low, "ci_high": high}


def _resamples(examples: int, evaluation: EvaluationSpec) -> Array:
    """How often each example is drawn, one row a resample."""
    draws = np.random.default_rng(evaluation.seed)
    return draws.multinomial(examples, np.full(examples, 1 / examples), size=evaluation.bootstrap).astype(np.float64)


def _statistic(columns: list[Array], examples: NDArray, weights: Array | None, evaluation: EvaluationSpec | None):
    """Correlation of the first two columns, given the third where there is one, with its interval."""
    if len(examples) < 3:
        return None, None, None
    # Centred, so that the sums of products lose no digits.
    columns = [column - column.mean() for column in columns]
    sums = [np.bincount(examples, a * b) for i, a in enumerate(columns) for b in columns[i:]]
    means = [np.bincount(examples, a) for a in columns]
    sums_ES = np.stack([np.bincount(examples).astype(np.float64), *means, *sums], axis=1)
    value = _from_sums(sums_ES.sum(0, keepdims=True), len(columns))[0]
    if weights is None or not np.isfinite(value):
        return value, None, None
    resampled = _from_sums(weights @ sums_ES, len(columns))
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled):
        return value, None, None
    tail = (1 - evaluation.confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return value, low, high


def _from_sums(sums: Array, columns: int) -> Array:
    """Correlation from `count, sums, sums of products` (upper triangle by rows), one a row of `sums`."""
    count, means, products = sums[:, 0], sums[:, 1 : 1 + columns], sums[:, 1 + columns :]
    pairs = [(i, j) for i in range(columns) for j in range(i, columns)]
    cov = {
        pair: products[:, k] / count - means[:, pair[0]] * means[:, pair[1]] / count**2 for k, pair in enumerate(pairs)
    }

    def correlation(i: int, j: int) -> Array:
        variance = cov[i, i] * cov[j, j]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(variance > 1e-24, cov[i, j] / np.sqrt(np.maximum(variance, 0)), np.nan)

    xy = correlation(0, 1)
    if columns == 2:
        return xy
    xz, yz = correlation(0, 2), correlation(1, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
