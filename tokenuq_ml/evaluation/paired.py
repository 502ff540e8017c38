"""Families of models, one model a seed, on the same examples: means over seeds and paired differences with intervals.

Knows nothing of tables, selections or what the numbers mean; which families are compared with which is the
caller's (`reports/family_table.py`). Shapes: S seeds of a family, E examples, B resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tokenuq_ml.errors import InputError
from tokenuq_ml.seeding import bootstrap_generator, family_seed_generator

_CHUNK_COUNTS = 1 << 22
"""Counts of drawn examples held at once: 32 MiB as float64, whatever the number of examples."""


class Estimate(NamedTuple):
    """A value and the ends of its percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Family:
    """What each example adds to a ratio of sums, for each seed: `value = sum(numerator) / sum(denominator)`."""

    seeds: tuple[int | None, ...]
    """A model that has no seed (the base model) has None."""
    numerators_SE: np.ndarray
    denominators_SE: np.ndarray


class PairedBootstrap:
    """A two-level bootstrap of family means: examples are drawn again, and seeds within each family.

    Each resample draws E of the E examples with replacement, the same ones for every model (a paired
    comparison: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13), and S of
    the S seeds of each family with replacement (a multi-stage bootstrap: Davison and Hinkley, Bootstrap
    Methods and their Application (1997), section 3.8). Families of the same seeds draw the same seeds, since
    a seed sets data order and initial adapter alike in all of them; others draw independently. Families of one
    seed each leave the plain paired bootstrap over examples: what another seed would give is then not in
    the interval. The statistic is the mean over seeds of the ratio of sums, of one family or of two as a
    difference.

    S seeds drawn with replacement spread by (S - 1) / S of the variance among them, and nothing corrects
    for it: such an interval is too narrow where seeds differ more than examples do. There, in simulated studies of
    two families of the same seeds, a 95% interval held the true difference in 53 of 100 with 2 seeds, 72 with
    3, 81 with 5 and 90 with 10; where examples differ more, in 95 to 97 of 100 (`tests/test_paired.py`).

    Raises:
        InputError: no family, or families over different numbers of examples.
        ValueError: no example, shapes that do not fit, numbers that are not finite, a denominator that is not positive.
    """

    def __init__(self, families: Mapping[str, Family], *, resamples: int, confidence: float, seed: int):
        _check(families)
        self._families, self._confidence, self._seed = families, confidence, seed
        self._values = {
            name: f.numerators_SE.sum(axis=1) / f.denominators_SE.sum(axis=1) for name, f in families.items()
        }
        self._values_SB = {name: np.empty((len(f.seeds), resamples)) for name, f in families.items()}
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
        """The family's mean over seeds; the interval is over examples and seeds."""
        return self._estimate(self._values[name].mean(), self._means_B(name))

    def spread(self, name: str) -> float | None:
        """Standard deviation over seeds of the value on all examples (S - 1 in the denominator); None for one seed."""
        values_S = self._values[name]
        return float(values_S.std(ddof=1)) if len(values_S) > 1 else None

    def difference(self, name: str, other: str) -> Estimate:
        """Mean of `name` minus mean of `other`."""
        return self._estimate(
            self._values[name].mean() - self._values[other].mean(), self._means_B(name) - self._means_B(other)
        )

    def _means_B(self, name: str) -> np.ndarray:
        values_SB = self._values_SB[name]
        drawn_SB = self._drawn_seeds(self._families[name].seeds, values_SB.shape[1])
        return np.take_along_axis(values_SB, drawn_SB, axis=0).mean(axis=0)

    def _drawn_seeds(self, seeds: Sequence[int | None], resamples: int) -> np.ndarray:
        """Indices of seeds `[S, B]`, the same for the same seeds whichever family they are of."""
        if len(seeds) == 1:
            return np.zeros((1, resamples), np.int64)
        generator = family_seed_generator(self._seed, seeds)
        return generator.integers(len(seeds), size=(len(seeds), resamples))

    def _estimate(self, value: float, resampled_B: np.ndarray) -> Estimate:
        low, high = np.quantile(resampled_B, [(1 - self._confidence) / 2, (1 + self._confidence) / 2])
        return Estimate(float(value), float(low), float(high))


def _counts(drawn_BE: np.ndarray, examples: int) -> np.ndarray:
    """How often each example was drawn in each resample, `[B, E]`."""
    rows = len(drawn_BE)
    flat = drawn_BE + examples * np.arange(rows)[:, None]
    return np.bincount(flat.ravel(), minlength=rows * examples).reshape(rows, examples).astype(np.float64)


def _sums(counts_BE: np.ndarray, parts_E: np.ndarray) -> np.ndarray:
    # Not a BLAS product: equal models must give equal sums to the last bit, however many threads there are.
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
