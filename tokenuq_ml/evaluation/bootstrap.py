"""Percentile bootstrap intervals of a ratio of sums, over clusters."""

import numpy as np
from numpy.typing import ArrayLike

from tokenuq_ml.seeding import bootstrap_generator

_CHUNK_DRAWS = 1 << 22
"""Indices drawn at once. Bounds the memory to tens of MiB for any number of examples."""


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, *, resamples: int, confidence: float, seed: int
) -> tuple[float, float, float]:
    """Return `sum(numerators) / sum(denominators)` and its percentile bootstrap interval: `(value, low, high)`.

    Items are clusters, for example an example with all of its tokens. Tokens of one example are not independent, so
    that whole examples are resampled, n of n with replacement. Percentile method: Efron and Tibshirani, An
    Introduction to the Bootstrap (1993), chapter 13. Equal arguments give equal results. One item gives an interval of
    width 0.

    Args:
        numerators: one number per item, `[n]`.
        denominators: one positive number per item, `[n]`.
        resamples: number of resamples.
        confidence: of the interval, for example 0.95.
        seed: of the resamples.

    Raises:
        ValueError: there is no item, shapes differ, a number is not finite, or a denominator is not positive.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if above.ndim != 1 or above.shape != below.shape:
        raise ValueError(f"numerators {above.shape} and denominators {below.shape} must have one shape [n]")
    if above.size == 0:
        raise ValueError("a bootstrap needs at least one example")
    if not (np.isfinite(above).all() and np.isfinite(below).all()):
        raise ValueError("a bootstrap needs finite numbers")
    if (below <= 0).any():
        raise ValueError("every denominator must be positive")
    value = float(above.sum() / below.sum())
    if above.size == 1:
        return value, value, value
    generator = bootstrap_generator(seed)
    ratios = np.empty(resamples)
    rows = max(1, _CHUNK_DRAWS // above.size)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = generator.integers(above.size, size=(stop - start, above.size))
        ratios[start:stop] = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return value, float(low), float(high)
