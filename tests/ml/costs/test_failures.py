"""What failures cost: the simulations against the closed forms, and both against cases that are known."""

import math

import pytest

from tokenuq_ml.costs.failures import (
    best_interval,
    elapsed,
    longest_interval,
    lost_share,
    simulate_checkpoints,
    simulate_shards,
)

HOUR = 3600.0


def test_without_failures_nothing_is_lost_and_shards_run_in_turns():
    outcome = simulate_shards(10, 3.0, nodes=2, workers=2, mtbf=1e12)
    assert (outcome.lost, outcome.failures, outcome.elapsed, outcome.useful) == (0.0, 0, 9.0, 30.0)
    outcome = simulate_checkpoints(10, 3.0, 1e12, saving=0.5)
    assert (outcome.lost, outcome.elapsed, outcome.saving) == (0.0, 35.0, 5.0)


@pytest.mark.parametrize("mtbf", [HOUR, 10 * HOUR, 100 * HOUR])
def test_ten_thousand_shards_lose_under_one_percent_as_the_closed_form_says(mtbf):
    """Of 131,072 response tokens of a model of 70 B parameters, on 64 nodes: 30 s each."""
    runs = [simulate_shards(10_000, 30.0, 64, 2, mtbf, restart=600.0, seed=seed) for seed in range(8)]
    simulated, failures = sum(run.lost_share for run in runs) / 8, sum(run.failures for run in runs)
    # Each failure loses half a shard of two workers, uniformly distributed: the spread of the mean.
    spread = 2 * 30.0 / math.sqrt(12) * math.sqrt(failures) / (8 * 10_000 * 30.0)
    spread += lost_share(30.0, mtbf) / math.sqrt(failures)
    assert simulated == pytest.approx(lost_share(30.0, mtbf), abs=4 * spread)
    assert simulated < 0.01 and failures > 0


@pytest.mark.parametrize("unit, saving", [(20.0, 1.0), (200.0, 10.0), (2000.0, 10.0)])
def test_checkpoints_lose_what_the_closed_form_says(unit, saving):
    mtbf, restart = 10_000.0, 300.0
    runs = [simulate_checkpoints(10_000, unit, mtbf, saving, restart, seed) for seed in range(4)]
    lost, time = (sum(getattr(run, name) for run in runs) / 4 for name in ("lost_share", "elapsed"))
    failures = sum(run.failures for run in runs)
    assert lost == pytest.approx(lost_share(unit, mtbf, saving), rel=5 / math.sqrt(failures))
    assert time == pytest.approx(elapsed(10_000 * unit, unit, mtbf, saving, restart), rel=5 / math.sqrt(failures))
    for run in runs:
        parts = run.useful + run.saving + run.lost + run.restarting
        assert run.elapsed == pytest.approx(parts)


def test_lost_work_of_rare_failures_is_half_a_unit_each():
    assert lost_share(10.0, 1e5) == pytest.approx(10.0 / 2e5, rel=1e-3)
    assert lost_share(1e6, 1.0) == math.inf and elapsed(1.0, 1e6, 1.0) == math.inf


def test_youngs_interval_takes_the_least_time():
    saving, mtbf = 10.0, 50_000.0
    best = best_interval(saving, mtbf)
    times = [elapsed(1e6, best * factor, mtbf, saving, 60.0) for factor in (0.5, 0.8, 1.0, 1.25, 2.0)]
    assert min(times) == times[2]


def test_the_longest_interval_loses_just_what_is_allowed():
    for saving in (0.0, 1.0):
        assert lost_share(longest_interval(1000.0, 0.01, saving), 1000.0, saving) == pytest.approx(0.01, rel=1e-6)
    assert longest_interval(1000.0, 0.01, saving=50.0) == 0


def test_a_failure_loses_the_shards_of_its_node_only():
    """One node of two fails again and again: the other one's shards are never lost."""
    outcome = simulate_shards(200, 1.0, nodes=2, workers=3, mtbf=20.0, restart=5.0, seed=3)
    assert outcome.failures and outcome.lost <= outcome.failures * 3 * 1.0
    assert outcome.elapsed * 6 >= outcome.useful + outcome.lost
