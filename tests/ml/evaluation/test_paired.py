"""The two-level bootstrap against a plain loop over the same draws, closed forms, and coverage in simulated studies."""

from statistics import NormalDist

import numpy as np
import pytest

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation import paired
from tokenuq_ml.evaluation.bootstrap import bootstrap_ratio
from tokenuq_ml.evaluation.paired import Family, PairedBootstrap

SETTINGS = {"resamples": 200, "confidence": 0.9, "seed": 5}


def family(seeds=(0, 1, 2), examples=20, draw=0, denominators=None) -> Family:
    generator = np.random.default_rng(draw)
    numerators = generator.gamma(2.0, size=(len(seeds), examples))
    if denominators is None:
        denominators = generator.integers(1, 9, size=examples).astype(float)
    return Family(seeds, numerators, np.tile(denominators, (len(seeds), 1)))


def plain_loop(a: Family, b: Family, resamples: int, confidence: float, seed: int):
    """The difference of means over seeds, one resample, one seed and one example after the other."""
    examples = a.numerators_SE.shape[1]
    drawn_examples = np.random.default_rng(seed).integers(examples, size=(resamples, examples))

    def seeds_of(one: Family):
        entropy = [len(one.seeds), seed, *(s + 1 for s in one.seeds)]
        return np.random.default_rng(entropy).integers(len(one.seeds), size=(len(one.seeds), resamples))

    differences = []
    for resample in range(resamples):
        means = []
        for one in (a, b):
            values = []
            for seed_index in seeds_of(one)[:, resample] if len(one.seeds) > 1 else [0]:
                above = below = 0.0
                for example in drawn_examples[resample]:
                    above += one.numerators_SE[seed_index, example]
                    below += one.denominators_SE[seed_index, example]
                values.append(above / below)
            means.append(sum(values) / len(values))
        differences.append(means[0] - means[1])
    return np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])


@pytest.mark.parametrize(
    "seeds_a, seeds_b", [((0, 1, 2), (0, 1, 2)), ((0, 1, 2), (0, 1)), ((0,), (3, 4)), ((0,), (0,))]
)
def test_estimates_equal_a_plain_loop(seeds_a, seeds_b):
    a, b = family(seeds_a, draw=1), family(seeds_b, draw=2)
    found = PairedBootstrap({"a": a, "b": b}, **SETTINGS).difference("a", "b")
    values = [(f.numerators_SE.sum(1) / f.denominators_SE.sum(1)).mean() for f in (a, b)]
    assert found.value == pytest.approx(values[0] - values[1], rel=1e-12)
    assert found[1:] == pytest.approx(plain_loop(a, b, **SETTINGS), rel=1e-10)


def test_chunks_and_other_families_do_not_matter(monkeypatch):
    families = {"a": family(draw=1), "b": family(draw=2)}
    whole = PairedBootstrap(families, **SETTINGS)
    monkeypatch.setattr(paired, "_CHUNK_COUNTS", 70)
    parts = PairedBootstrap({"c": family((7, 8), draw=3), **families}, **SETTINGS)
    assert parts.difference("a", "b") == whole.difference("a", "b") and parts.mean("b") == whole.mean("b")


def test_equal_families_differ_by_exactly_zero():
    families = {"a": family(examples=333), "b": family(examples=333), "c": family(examples=333, draw=9)}
    assert PairedBootstrap(families, **SETTINGS).difference("a", "b") == (0, 0, 0)
    assert PairedBootstrap(families, **SETTINGS).difference("a", "a") == (0, 0, 0)


def test_a_constant_shift_has_an_interval_of_width_zero():
    """Every example and seed is 0.5 a unit higher, whatever the examples and the seeds are like."""
    low = family(examples=64)
    high = Family(low.seeds, low.numerators_SE + 0.5 * low.denominators_SE, low.denominators_SE)
    found = PairedBootstrap({"low": low, "high": high}, **SETTINGS).difference("high", "low")
    assert found == pytest.approx((0.5, 0.5, 0.5), abs=1e-12)
    # With other seeds they are not paired any more, and the seeds' spread shows.
    other = Family((7, 8, 9), high.numerators_SE, high.denominators_SE)
    unpaired = PairedBootstrap({"low": low, "high": other}, **SETTINGS).difference("high", "low")
    assert unpaired.low < 0.5 - 1e-3 and unpaired.high > 0.5 + 1e-3


def test_one_seed_is_the_bootstrap_over_examples_of_the_evaluations():
    one = family((3,), examples=50)
    study = PairedBootstrap({"one": one}, **SETTINGS)
    assert study.mean("one") == pytest.approx(bootstrap_ratio(one.numerators_SE[0], one.denominators_SE[0], **SETTINGS))
    assert study.spread("one") is None


def test_a_paired_difference_of_one_seed_has_the_z_interval():
    draw = np.random.default_rng(1)
    examples = 400
    common, noise = draw.normal(0, 5.0, size=examples), draw.normal(0.3, 1.0, size=examples)
    ones = np.ones((1, examples))
    families = {"a": Family((0,), (common + noise)[None], ones), "b": Family((0,), common[None], ones)}
    found = PairedBootstrap(families, resamples=8000, confidence=0.95, seed=0).difference("a", "b")
    half = NormalDist().inv_cdf(0.975) * noise.std() / np.sqrt(examples)
    assert found[1:] == pytest.approx((noise.mean() - half, noise.mean() + half), abs=0.08 * half)


def test_spread_is_the_sample_standard_deviation_over_seeds():
    ones = np.ones((3, 2))
    study = PairedBootstrap({"a": Family((0, 1, 2), np.array([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]]), ones)}, **SETTINGS)
    assert study.spread("a") == pytest.approx(1.0) and study.mean("a").value == pytest.approx(3.0)


def coverage(seeds: int, seed_sd: float, example_sd: float, studies: int = 300) -> float:
    """The share of simulated studies whose 95% interval holds the true difference of two families."""
    draw, examples, held = np.random.default_rng(seeds), 50, 0
    names, shape = tuple(range(seeds)), (seeds, examples)
    for number in range(studies):
        common = draw.normal(size=examples)
        a, b = (
            Family(
                names,
                true + common + draw.normal(0, seed_sd, (seeds, 1)) + draw.normal(0, example_sd, (1, examples)),
                np.ones(shape),
            )
            for true in (0.3, 0.0)
        )
        study = PairedBootstrap({"a": a, "b": b}, resamples=300, confidence=0.95, seed=number)
        _, low, high = study.difference("a", "b")
        held += low <= 0.3 <= high
    return held / studies


@pytest.mark.parametrize(
    "seeds, seed_sd, example_sd, least, most",
    [
        (1, 0.0, 1.0, 0.91, 0.98),
        (3, 0.02, 1.0, 0.91, 0.98),
        # Few seeds that differ more than the examples: the interval is too narrow, as the docstring says.
        (3, 0.5, 0.05, 0.6, 0.82),
        (10, 0.5, 0.05, 0.85, 0.97),
    ],
)
def test_coverage_of_simulated_studies(seeds, seed_sd, example_sd, least, most):
    assert least <= coverage(seeds, seed_sd, example_sd) <= most


@pytest.mark.parametrize(
    "families, error, message",
    [
        ({}, InputError, "no family"),
        ({"a": family(examples=3), "b": family(examples=4)}, InputError, "b was evaluated on 4 examples and a on 3"),
        ({"a": Family((0, 1), np.ones((1, 3)), np.ones((1, 3)))}, ValueError, "2 seeds"),
        ({"a": Family((0,), np.ones((1, 0)), np.ones((1, 0)))}, ValueError, "at least one example"),
        ({"a": Family((0,), np.array([[np.nan]]), np.ones((1, 1)))}, ValueError, "finite"),
        ({"a": Family((0,), np.ones((1, 1)), np.zeros((1, 1)))}, ValueError, "positive"),
    ],
)
def test_families_that_cannot_be_compared_are_refused(families, error, message):
    with pytest.raises(error, match=message):
        PairedBootstrap(families, **SETTINGS)
