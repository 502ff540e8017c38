"""Bootstrap intervals against closed forms."""

from statistics import NormalDist

import numpy as np
import pytest

from tokenuq_ml.evaluation import bootstrap
from tokenuq_ml.evaluation.bootstrap import bootstrap_ratio

SETTINGS = {"resamples": 4000, "confidence": 0.95, "seed": 0}


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_mean_of_normals_has_the_z_interval(confidence):
    sample = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    value, low, high = bootstrap_ratio(sample, np.ones(400), resamples=8000, confidence=confidence, seed=0)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * sample.std() / np.sqrt(400)
    assert value == pytest.approx(sample.mean(), rel=1e-12)
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.08 * half)


def test_ratio_of_sums_has_the_delta_methods_interval():
    """Var(sum a / sum b) = sum (a - r b)^2 / (sum b)^2 to first order (Cochran 1977, section 6.4)."""
    draw = np.random.default_rng(2)
    counts = draw.integers(5, 50, size=500)
    sums = counts * draw.normal(2.0, 0.5, size=500)
    value, low, high = bootstrap_ratio(sums, counts, **SETTINGS)
    ratio = sums.sum() / counts.sum()
    half = 1.96 * np.sqrt(((sums - ratio * counts) ** 2).sum()) / counts.sum()
    assert value == pytest.approx(ratio, rel=1e-12)
    assert value != pytest.approx((sums / counts).mean(), rel=1e-6)  # not the mean of ratios
    assert (low, high) == pytest.approx((ratio - half, ratio + half), abs=0.1 * half)


def test_clusters_and_not_tokens_are_resampled():
    """Tokens that are all alike within an example carry no more than the example does."""
    draw = np.random.default_rng(3)
    means = draw.normal(size=100)
    _, low, high = bootstrap_ratio(means * 40, np.full(100, 40), **SETTINGS)
    _, low_of_means, high_of_means = bootstrap_ratio(means, np.ones(100), **SETTINGS)
    assert (low, high) == pytest.approx((low_of_means, high_of_means), rel=1e-9)


def test_equal_arguments_give_equal_results_and_the_seed_matters():
    sample = np.random.default_rng(4).random(30)
    assert bootstrap_ratio(sample, np.ones(30), **SETTINGS) == bootstrap_ratio(sample, np.ones(30), **SETTINGS)
    other = bootstrap_ratio(sample, np.ones(30), **{**SETTINGS, "seed": 1})
    assert other != bootstrap_ratio(sample, np.ones(30), **SETTINGS)


def test_chunks_do_not_change_the_interval(monkeypatch):
    sample = np.random.default_rng(5).random(30)
    whole = bootstrap_ratio(sample, np.ones(30), **SETTINGS)
    monkeypatch.setattr(bootstrap, "_CHUNK_DRAWS", 100)
    assert bootstrap_ratio(sample, np.ones(30), **SETTINGS) == whole


def test_one_example_has_an_interval_of_width_zero():
    assert bootstrap_ratio([3.0], [4], **SETTINGS) == (0.75, 0.75, 0.75)


@pytest.mark.parametrize(
    "numerators, denominators, message",
    [
        ([], [], "at least one example"),
        ([0.0, 0.0], [0, 0], "must be positive"),
        ([1.0, 1.0], [2, 0], "must be positive"),
        ([1.0, float("nan")], [1, 1], "finite"),
        ([1.0, 2.0], [1], "one shape"),
    ],
)
def test_bad_numbers_are_refused(numerators, denominators, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ratio(numerators, denominators, **SETTINGS)
