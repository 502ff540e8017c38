"""Means over seeds and paired differences of model families on the same examples, with bootstrap intervals.

`reports/family_table.py` decides which families are compared. Shapes: S seeds of a family, E examples, B resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tokenuq_ml.errors import InputError
from tokenuq_ml.seeding import bootstrap_generator, family_seed_generator

_CHUNK_COUNTS = 1 << 22
"""Counts of drawn examples in memory at once: 32 MiB as float64, for any number of examples."""


class Estimate(NamedTuple):
    """A value with its percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Family:
    """Each example's part of a ratio of sums, for each seed: `value = sum(numerator) / sum(denominator)`."""

    seeds: tuple[int | None, ...]
    """None for a model without seed, such as the base model."""
    numerators_SE: np.ndarray
    denominators_SE: np.ndarray


class PairedBootstrap:
    """A two-level bootstrap of family means: over examples, and over seeds within each family.

    Each resample draws E of the E examples with replacement, the same ones for every model (a paired comparison: Efron
    and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13), and S of the S seeds of each family
    with replacement (a multi-stage bootstrap: Davison and Hinkley, Bootstrap Methods and their Application (1997),
    section 3.8). Families with the same seeds draw the same seeds, since a seed decides data order and initial adapter
    in all of them; other families draw independently. With one seed per family this is the plain paired bootstrap over
    examples, whose interval does not cover the variance over seeds. The statistic is the mean over seeds of the ratio
    of sums, or the difference of two such means.

    The variance of S seeds drawn with replacement is (S - 1) / S of their variance. This is not corrected, so that an
    interval is too narrow where seeds differ more than examples do. There, in simulated studies of two families with
    the same seeds, a 95% interval contained the true difference in 53 of 100 studies with 2 seeds, 72 with 3, 81 with 5
    and 90 with 10; where examples differ more, in 95 to 97 of 100 (`tests/ml/evaluation/test_paired.py`).

    Args:
        families: name -> family, all on the same examples.
        resamples: number of resamples.
        confidence: of the intervals, for example 0.95.
        seed: of the resamples.

    Raises:
        InputError: there is no family, or families have different numbers of examples.
        ValueError: there is no example, shapes do not fit, a number is not finite, or a denominator is not positive.
    """

    def __init__(self, families: Mapping[str, Family], *, resamples: int, confidence: float, seed: int):
        _check(families)
        self._families, self._confidence, self._seed = families, confidence, seed
        self._values = {
            name: f.numerators_SE.sum(axis=1) / f.denominators_SE.sum(axis=1) for name, f in families.items()
        }
        self._values_SB = {name: np.empty((len(f.seeds), resamples)) for name, f in families.items()}
        self._drawn_means: dict[str, np.ndarray] = {}
        examples = next(iter(families.values())).numerators_SE.shape[1]
        generator = bootstrap_generator(seed)
        rows = max(1, _CHUNK_COUNTS // examples)
        for start in range(0, resamples, rows):
            stop = min(start + rows, resamples)
            counts_BE = _counts(generator.integers(examples, size=(stop - start, examples)), examples)
            for name, family in families.items():
                for index in range(len(family.seeds)):
                    self._values_SB[name][index, start:stop] = _sums(counts_BE, family.numerators_SE[index]) / _sums(
                        counts_BE, family.denominators_SE[index]
                    )

    def mean(self, name: str) -> Estimate:
        """Return the family's mean over seeds, with its interval over examples and seeds."""
        return self._estimate(self._values[name].mean(), self._means_B(name))

    def spread(self, name: str) -> float | None:
        """Return the standard deviation over seeds of the value (S - 1 in the denominator); None for one seed."""
        values_S = self._values[name]
        return float(values_S.std(ddof=1)) if len(values_S) > 1 else None

    def difference(self, name: str, other: str) -> Estimate:
        """Return the mean of `name` minus the mean of `other`, with its interval."""
        return self._estimate(
            self._values[name].mean() - self._values[other].mean(), self._means_B(name) - self._means_B(other)
        )

    def _means_B(self, name: str) -> np.ndarray:
        # Kept: with 40 families, each is in 41 pairs.
        if name not in self._drawn_means:
            values_SB = self._values_SB[name]
            drawn_SB = self._drawn_seeds(self._families[name].seeds, values_SB.shape[1])
            self._drawn_means[name] = np.take_along_axis(values_SB, drawn_SB, axis=0).mean(axis=0)
        return self._drawn_means[name]

    def _drawn_seeds(self, seeds: Sequence[int | None], resamples: int) -> np.ndarray:
        """Return indices of seeds `[S, B]`; they depend on the seeds, not on the family."""
        if len(seeds) == 1:
            return np.zeros((1, resamples), np.int64)
        generator = family_seed_generator(self._seed, seeds)
        return generator.integers(len(seeds), size=(len(seeds), resamples))

    def _estimate(self, value: float, resampled_B: np.ndarray) -> Estimate:
        low, high = np.quantile(resampled_B, [(1 - self._confidence) / 2, (1 + self._confidence) / 2])
        return Estimate(float(value), float(low), float(high))


def _counts(drawn_BE: np.ndarray, examples: int) -> np.ndarray:
    """Return how often each example was drawn in each resample, `[B, E]`."""
    rows = len(drawn_BE)
    flat = drawn_BE + examples * np.arange(rows)[:, None]
    return np.bincount(flat.ravel(), minlength=rows * examples).reshape(rows, examples).astype(np.float64)


def _sums(counts_BE: np.ndarray, parts_E: np.ndarray) -> np.ndarray:
    # Not a BLAS product: equal models must give equal sums to the last bit, for any number of threads.
    return np.einsum("be,e->b", counts_BE, parts_E)


def _check(families: Mapping[str, Family]) -> None:
    if not families:
        raise InputError("there is no family to compare")
    first, *_ = families
    for name, family in families.items():
        above, below = family.numerators_SE, family.denominators_SE
        if above.ndim != 2 or above.shape != below.shape or len(above) != len(family.seeds):
            raise ValueError(f"{name}: numerators {above.shape}, denominators {below.shape}, {len(family.seeds)} seeds")
        if not above.size:
            raise ValueError("a bootstrap needs at least one example and one seed")
        if above.shape[1] != families[first].numerators_SE.shape[1]:
            raise InputError(
                f"{name} was evaluated on {above.shape[1]} examples and {first} on "
                f"{families[first].numerators_SE.shape[1]}: evaluate both again"
            )
        if not (np.isfinite(above).all() and np.isfinite(below).all()):
            raise ValueError(f"{name}: a bootstrap needs finite numbers")
        if (below <= 0).any():
            raise ValueError(f"{name}: every denominator must be positive")
