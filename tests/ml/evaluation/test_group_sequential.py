"""Repeated confidence intervals: published boundaries, variances by hand, and simulated coverage over all looks."""

import numpy as np
import pytest

from tokenuq_ml.evaluation.group_sequential import (
    critical_values,
    crossing_probabilities,
    effects,
    paired_effects,
    repeated_interval,
    spent,
)
from tokenuq_ml.evaluation.paired import Family

ROUNDS = (5, 7, 10)


def family(values_SE, tokens_E=None, seeds=None):
    values_SE = np.asarray(values_SE, dtype=np.float64)
    tokens_E = np.ones(values_SE.shape[1]) if tokens_E is None else np.asarray(tokens_E, dtype=np.float64)
    tokens_SE = np.broadcast_to(tokens_E, values_SE.shape)
    return Family(tuple(seeds or range(len(values_SE))), values_SE, tokens_SE)


def test_critical_values_are_those_of_lan_and_demets():
    # Five equal looks, two-sided 5%, as gsDesign's sfLDPocock gives them.
    assert critical_values((1, 2, 3, 4, 5), 0.95) == pytest.approx([2.438, 2.427, 2.410, 2.397, 2.386], abs=5e-4)
    assert critical_values((4,), 0.95) == pytest.approx([1.959964], abs=1e-6)
    assert spent(1.0, 0.05) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("critical", "looks"),
    # Pocock (1977) and O'Brien and Fleming (1979): 5% over all looks.
    [([2.289] * 3, 3), ([2.413] * 5, 5), ([2.040 * (5 / look) ** 0.5 for look in range(1, 6)], 5)],
)
def test_published_boundaries_are_crossed_with_their_error(critical, looks):
    crossed = crossing_probabilities([look / looks for look in range(1, looks + 1)], critical)
    assert sum(crossed) == pytest.approx(0.05, abs=2e-4)


def test_the_standard_error_is_that_of_a_two_way_layout():
    # Seeds alone differ: the variance of S means. Examples alone: that of E means.
    seeds_S, examples_E = np.array([1.0, 2.0, 4.0]), np.array([0.0, 3.0, 5.0, 6.0])
    of_seeds = effects(np.tile(seeds_S[:, None], (1, 4)))
    assert of_seeds.standard_error == pytest.approx(seeds_S.std(ddof=1) / 3**0.5) and of_seeds.degrees == 2
    of_examples = effects(np.tile(examples_E, (3, 1)))
    assert of_examples.standard_error == pytest.approx(examples_E.std(ddof=1) / 2) and of_examples.degrees == 3
    both = effects(seeds_S[:, None] + examples_E)
    assert both.standard_error**2 == pytest.approx(of_seeds.standard_error**2 + of_examples.standard_error**2)
    assert both.mean == pytest.approx(seeds_S.mean() + examples_E.mean()) and 2 < both.degrees < 5


def test_a_paired_difference_is_that_of_two_ratios_of_sums():
    draw = np.random.default_rng(0)
    tokens_E = draw.integers(1, 9, size=6)
    one, other = (family(draw.random((5, 6)), tokens_E) for _ in range(2))
    ratios = [f.numerators_SE.sum(axis=1) / f.denominators_SE.sum(axis=1) for f in (one, other)]
    values_SE = paired_effects(one, other)
    assert values_SE.mean() == pytest.approx((ratios[0] - ratios[1]).mean())
    found = repeated_interval(values_SE, ROUNDS, 0.95)
    assert found.low < found.value < found.high
    assert repeated_interval(values_SE, (5,), 0.95).high < found.high, "one look needs no allowance for others"
    same = repeated_interval(paired_effects(one, one), ROUNDS, 0.95)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="the same seeds"):
        paired_effects(one, family(draw.random((5, 6)), tokens_E, seeds=(1, 2, 3, 4, 5)))
    with pytest.raises(ValueError, match="not in list"):
        repeated_interval(values_SE[:4], ROUNDS, 0.95)


@pytest.mark.parametrize("deviations", [(0.5, 1.0, 3.0), (1.0, 0.0, 3.0)])
def test_all_looks_together_contain_the_truth_as_often_as_they_say(deviations):
    """500 simulated studies of 10 seeds and 60 examples; a fixed seed, within three standard errors of 95%."""
    draw, (of_seeds, of_examples, rest) = np.random.default_rng(0), deviations
    missed = 0
    for _ in range(500):
        values_SE = draw.normal(0, of_seeds, (10, 1)) + draw.normal(0, of_examples, 60) + draw.normal(0, rest, (10, 60))
        found = [repeated_interval(values_SE[:seeds], ROUNDS, 0.95) for seeds in ROUNDS]
        missed += any(not one.low <= 0 <= one.high for one in found)
    assert 0.92 <= 1 - missed / 500
