"""Paired differences that are looked at several times, while seeds are added: intervals that allow for every look.

Shapes: S seeds, E examples.

Whoever looks at an interval after each round of seeds and stops once it excludes 0 is wrong more often than the
interval says. Repeated confidence intervals (Jennison and Turnbull, Interim analyses: the repeated confidence interval
approach, JRSS B 51 (1989), 305-361) contain the true value at all looks together with the given confidence, whatever
makes one stop. Look k of K at n_k seeds has the critical value c_k of a group-sequential test that spends

    a(t_k) = a log(1 + (e - 1) t_k),    t_k = n_k / n_K

of the error a until then (Lan and DeMets, Discrete sequential boundaries for clinical trials, Biometrika 70 (1983),
659-663, the function whose boundaries are close to Pocock's). c_k follows from the recursion of Armitage, McPherson and
Rowe (Repeated significance tests on accumulating data, JRSS A 132 (1969), 235-244). With few seeds the variance is an
estimate: each look uses the quantile of Student's t at the look's level 2 (1 - Phi(c_k)) (Jennison and Turnbull, Group
Sequential Methods with Applications to Clinical Trials (2000), section 4.4).

Why not a library: scipy has no group-sequential tests, its normal integrals over boxes are random to about 1e-5, and
the packages that have them (gsDesign, rpact) are for R.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, stdtrit

from tokenuq_ml.evaluation.paired import Estimate, Family

_NODES = 128
"""Points of the Gauss-Legendre rule: probabilities to about 1e-10."""
_LARGEST = 12.0
"""Critical values are looked for up to this many standard deviations."""


def spent(fraction: float, error: float) -> float:
    """Return the error that may be spent until a fraction of all seeds is there."""
    return float(error * np.log(1 + (np.e - 1) * fraction))


@lru_cache
def critical_values(rounds: tuple[int, ...], confidence: float) -> tuple[float, ...]:
    """Return the critical value of each look, in standard deviations of a normal statistic.

    Args:
        rounds: seeds at each look, rising.
        confidence: of the intervals at all looks together, for example 0.95.
    """
    error, found = 1 - confidence, list[float]()
    fractions = [count / rounds[-1] for count in rounds]
    for look, fraction in enumerate(fractions):
        more = spent(fraction, error) - (spent(fractions[look - 1], error) if look else 0.0)

        def excess(value: float, look: int = look, more: float = more) -> float:
            return crossing_probabilities(fractions[: look + 1], [*found, value])[-1] - more

        found.append(float(brentq(excess, 0.0, _LARGEST, xtol=1e-10)))
    return tuple(found)


def crossing_probabilities(fractions: Sequence[float], critical: Sequence[float]) -> list[float]:
    """Return the probability that a statistic without effect is first beyond its critical value at each look.

    Args:
        fractions: of the information that is there at each look; increments are independent.
        critical: values of both sides, one per look.
    """
    nodes_N, weights_N = np.polynomial.legendre.leggauss(_NODES)
    found, before, points_N, mass_N = list[float](), 0.0, np.zeros(1), np.ones(1)
    for fraction, value in zip(fractions, critical, strict=True):
        bound, deviation = value * np.sqrt(fraction), np.sqrt(fraction - before)
        inside_N = ndtr((bound - points_N) / deviation) - ndtr((-bound - points_N) / deviation)
        found.append(float(mass_N @ (1 - inside_N)))
        new_N = bound * nodes_N
        steps_NN = (new_N[:, None] - points_N) / deviation
        density_N = np.exp(-(steps_NN**2) / 2) @ mass_N / (deviation * np.sqrt(2 * np.pi))
        before, points_N, mass_N = fraction, new_N, bound * weights_N * density_N
    return found


class Effects(NamedTuple):
    """A mean over seeds and examples, with its standard error."""

    mean: float
    standard_error: float
    degrees: float
    """Of freedom of the standard error."""


def paired_effects(family: Family, other: Family) -> np.ndarray:
    """Return what each example of each seed adds to the difference of two families, `[S, E]`: their mean.

    A metric is a ratio of sums over examples. Its linear approximation (Cochran, Sampling Techniques (1977), section
    6.4) turns it into a mean, so that variances are those of means.

    Raises:
        ValueError: the families have other seeds, or other examples.
    """
    if family.seeds != other.seeds or family.numerators_SE.shape != other.numerators_SE.shape:
        raise ValueError(f"a paired difference needs the same seeds and examples, has {family.seeds}, {other.seeds}")
    return _linear(family) - _linear(other)


def _linear(family: Family) -> np.ndarray:
    above_SE, below_SE = family.numerators_SE, family.denominators_SE
    values_S = above_SE.sum(axis=1) / below_SE.sum(axis=1)
    rest_SE = above_SE - values_S[:, None] * below_SE
    linear_SE: np.ndarray = values_S[:, None] + rest_SE / below_SE.mean(axis=1, keepdims=True)
    return linear_SE


def effects(values_SE: np.ndarray) -> Effects:
    """Return the mean of values of crossed seeds and examples, both drawn at random, with its standard error.

    With the mean squares of seeds, examples and what is left of a two-way layout,

        variance of the mean = (MS_seeds + MS_examples - MS_rest) / (S E),

    with Satterthwaite's degrees of freedom (An approximate distribution of estimates of variance components, Biometrics
    Bulletin 2 (1946), 110-114). MS_rest is subtracted as long as the larger of the other two stays.

    Args:
        values_SE: at least two seeds and two examples.
    """
    seeds, examples = values_SE.shape
    mean = values_SE.mean()
    of_seeds_S, of_examples_E = values_SE.mean(axis=1) - mean, values_SE.mean(axis=0) - mean
    rest_SE = values_SE - mean - of_seeds_S[:, None] - of_examples_E
    degrees = np.array([seeds - 1, examples - 1, (seeds - 1) * (examples - 1)], dtype=np.float64)
    squares = (
        np.array([examples * (of_seeds_S**2).sum(), seeds * (of_examples_E**2).sum(), (rest_SE**2).sum()]) / degrees
    )
    total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if total == 0:
        return Effects(float(mean), 0.0, float(degrees[0]))
    freedom = total**2 / (squares**2 / degrees).sum()
    return Effects(float(mean), float(np.sqrt(total / (seeds * examples))), float(max(freedom, degrees[0])))


def repeated_interval(values_SE: np.ndarray, rounds: Sequence[int], confidence: float) -> Estimate:
    """Return the mean with its interval at a look.

    Args:
        values_SE: from `paired_effects`, of as many seeds as one of the looks has.
        rounds: seeds at each look.
        confidence: at all looks together.

    Raises:
        ValueError: no look has so many seeds.
    """
    look = list(rounds).index(len(values_SE))
    level = 2 * ndtr(-critical_values(tuple(rounds), confidence)[look])
    found = effects(values_SE)
    # The function under `scipy.stats.t.ppf`, whose import takes half a second.
    half = float(stdtrit(found.degrees, 1 - level / 2)) * found.standard_error
    return Estimate(found.mean, found.mean - half, found.mean + half)
