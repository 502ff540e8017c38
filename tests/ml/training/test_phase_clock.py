"""Phases nest; their times are disjoint and add up to the total."""

import pytest

from tokenuq_ml.training import phase_clock
from tokenuq_ml.training.phase_clock import PhaseClock


class Time:
    now = 0.0

    @classmethod
    def perf_counter(cls):
        return cls.now


@pytest.fixture
def time(monkeypatch):
    monkeypatch.setattr(phase_clock, "time", Time)
    Time.now = 0.0
    return Time


def test_the_time_of_a_phase_excludes_that_of_the_phases_inside_it(time):
    clock = PhaseClock()
    clock.start()
    time.now = 1
    with clock.phase("backward"):
        time.now = 3
        with clock.phase("forward"):
            time.now = 6
            with clock.phase("head"):
                time.now = 10
        time.now = 15
    clock.start()
    time.now = 21
    clock.stop()
    time.now = 100
    assert clock.seconds() == {"other": 7, "backward": 7, "forward": 3, "head": 4, "total": 21}


def test_an_exception_ends_the_phase(time):
    clock = PhaseClock()
    clock.start()
    with pytest.raises(RuntimeError), clock.phase("head"):
        time.now = 2
        raise RuntimeError
    time.now = 5
    clock.stop()
    assert clock.seconds() == {"head": 2, "other": 3, "total": 5}


def test_a_clock_that_was_not_started_counts_nothing(time):
    clock = PhaseClock()
    with clock.phase("head"):
        time.now = 2
    assert clock.seconds() == {"total": 0}
