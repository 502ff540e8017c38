"""What a run has done, and about how long the rest takes."""

import pytest

from tokenuq_ml.progress import progress_line
from tokenuq_pipeline.runtime.run_progress import Estimate, RunProgress, State, about, in_words

NAMES = ["datasets/d", "s/teacher", "s/a/student", "s/a/evaluation", "s/b/student", "s/b/evaluation"]
PLANNED = dict(zip(NAMES, (10, 100, 100, 40, 100, 40), strict=True))


def estimates(names):
    return {name: Estimate(PLANNED[name], has_model=name != "datasets/d") for name in names if name in PLANNED}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def run(clock):
    progress = RunProgress("study s", estimates, clock=clock)
    progress.plan(NAMES)
    return progress


def make(run, clock, name, seconds):
    run.start(name)
    clock.now += seconds
    run.finish(name, seconds)


def test_nothing_is_said_before_anything_with_a_model_is_measured(run, clock):
    assert run.seconds_to_go() is None
    make(run, clock, "datasets/d", 2)
    assert run.seconds_to_go() is None
    run.start("s/teacher")
    assert run.seconds_to_go() is None
    clock.now += 10
    run.hear("s/teacher", progress_line("s/teacher", 1, 4, "steps", "loss 1.0", 30))
    # The teacher takes 40 s where the plan says 100.
    assert run.seconds_to_go() == pytest.approx(30 + 0.4 * (100 + 40 + 100 + 40))


def test_a_stage_that_was_measured_corrects_its_own_estimates_and_others_theirs(run, clock):
    make(run, clock, "datasets/d", 2)
    make(run, clock, "s/teacher", 50)
    assert run.seconds_to_go() == pytest.approx(0.5 * 280)
    make(run, clock, "s/a/student", 80)
    # Students by the first student, evaluations by all that has a model: (50 + 80) / (100 + 100).
    assert run.seconds_to_go() == pytest.approx(80 + 2 * 40 * 0.65)
    make(run, clock, "s/a/evaluation", 10)
    assert run.seconds_to_go() == pytest.approx(80 + 10)


def test_time_passes_for_what_runs(run, clock):
    for name, seconds in (("datasets/d", 2), ("s/teacher", 50), ("s/a/student", 50), ("s/a/evaluation", 20)):
        make(run, clock, name, seconds)
    run.start("s/b/student")
    assert run.seconds_to_go() == pytest.approx(50 + 20)
    clock.now += 20
    assert run.seconds_to_go() == pytest.approx(30 + 20)
    clock.now += 100
    # It takes longer than any estimate: it may be done at any time.
    assert run.seconds_to_go() == pytest.approx(20)
    run.hear("s/b/student", progress_line("s/b/student", 2, 4, "steps", "loss", 90))
    clock.now += 30
    # Its own progress counts: 60 s of 210 are left. Evaluations are as fast as before.
    assert run.seconds_to_go() == pytest.approx(60 + 20)


def test_progress_of_a_part_is_not_that_of_the_asset(run, clock):
    make(run, clock, "s/teacher", 100)
    run.start("s/a/evaluation")
    clock.now += 5
    run.hear("s/a/evaluation", progress_line("s/a/evaluation loss", 90, 100, "tokens", "20 tokens/s", 1))
    run.finish("datasets/d", 10)
    assert run.seconds_to_go() == pytest.approx(35 + 100 + 100 + 40)
    run.hear("s/a/evaluation", progress_line("s/a/evaluation IF-Eval", 1, 12, "prompts", "1 prompts/s", 80))
    assert run.seconds_to_go() == pytest.approx(80 + 100 + 100 + 40)


def test_assets_at_once_share_the_time(run, clock):
    run.parallel = 2
    make(run, clock, "datasets/d", 10)
    make(run, clock, "s/teacher", 100)
    run.start("s/a/student"), run.start("s/b/student")
    assert run.seconds_to_go() == pytest.approx((200 + 80) / 2)
    for name in ("s/a/evaluation", "s/b/evaluation", "s/b/student"):
        run.finish(name, PLANNED[name])
    # The last one does not get faster by being alone.
    assert run.seconds_to_go() == pytest.approx(100)


def test_what_failed_or_waits_for_it_takes_no_time(run, clock):
    make(run, clock, "datasets/d", 10)
    make(run, clock, "s/teacher", 100)
    run.start("s/a/student")
    run.fail(["s/a/student"], ["s/a/evaluation", "s/teacher"])
    assert [one.name for one in run.of(State.FAILED)] == ["s/a/student"]
    # What is made stays made.
    assert [one.name for one in run.of(State.BLOCKED)] == ["s/a/evaluation"]
    assert run.seconds_to_go() == pytest.approx(140)
    run.fail(["the run"])
    make(run, clock, "s/b/student", 100)
    make(run, clock, "s/b/evaluation", 40)
    assert run.seconds_to_go() == 0


def test_a_second_wave_adds_its_assets_and_keeps_what_was_made(run, clock):
    for name in NAMES:
        make(run, clock, name, PLANNED[name])
    assert run.seconds_to_go() == 0
    run.plan(["s/b/evaluation", "s/report"])
    assert [one.name for one in run.of(State.DONE)] == NAMES[:-1]
    assert [one.name for one in run.of(State.WAITING)] == ["s/b/evaluation", "s/report"]
    # Nothing is known of the report.
    assert run.seconds_to_go() is None
    run.finish("s/report", 3)
    assert run.seconds_to_go() == pytest.approx(40)


def test_a_model_that_was_fetched_is_estimated(clock):
    fetched = []
    run = RunProgress("study s", lambda names: estimates(names) if fetched else {}, clock=clock)
    run.plan(["models/m", *NAMES])
    make(run, clock, "datasets/d", 2)
    fetched.append("models/m")
    make(run, clock, "models/m", 60)
    make(run, clock, "s/teacher", 50)
    assert run.seconds_to_go() == pytest.approx(0.5 * 280)


def test_messages_show_what_an_asset_does(run, clock):
    run.start("s/teacher")
    run.hear("s/teacher", "s/teacher: loading the model\nmore")
    asset = run.assets["s/teacher"]
    assert asset.said == "loading the model" and asset.measured is None
    run.hear("s/teacher", progress_line("s/teacher", 1, 4, "steps", "loss 1.0", 30))
    assert asset.said == "" and asset.measured.done == 1
    clock.now += 40
    assert asset.left(clock.now) == 0
    run.hear("unknown", "ignored")
    run.start("s/teacher")
    assert asset.measured is None


@pytest.mark.parametrize(
    "seconds, exact, rough",
    [
        (0, "0 s", "about 10 s"),
        (42.4, "42 s", "about 40 s"),
        (59.7, "1 min 00 s", "about 1 min"),
        (185, "3 min 05 s", "about 3 min"),
        (3599.6, "1 h 00 min", "about 60 min"),
        (7800, "2 h 10 min", "about 2.2 h"),
    ],
)
def test_durations_in_words(seconds, exact, rough):
    assert in_words(seconds) == exact and about(seconds) == rough
