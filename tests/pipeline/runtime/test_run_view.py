"""Plain lines of a run: headings, less and less progress, a line for a stage that is silent; and who gets them."""

import io
import logging

import pytest

from tokenuq_ml.progress import progress_line
from tokenuq_pipeline.runtime.console import Console
from tokenuq_pipeline.runtime.run_progress import Estimate, RunProgress
from tokenuq_pipeline.runtime.run_view import LONGEST_S, LineView, why_plain


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def view(now):
    console = Console()
    console.stream = io.StringIO()
    return LineView(console, RunProgress("study s", clock=lambda: now[0]))


def lines(view):
    """What was printed since the last call, without the time of day."""
    text = view.console.stream.getvalue()
    view.console.stream.seek(0)
    view.console.stream.truncate()
    return [line[10:] for line in text.splitlines()]


def hear(view, done, total=1000):
    view.hear("s/a", logging.INFO, progress_line("s/a", done, total, "steps", "loss 1.0", total - done))


def test_an_asset_has_a_heading_its_messages_and_its_time(view, now):
    view.plan(["s/a", "s/b"])
    view.start("s/a")
    view.hear("s/a", logging.INFO, "loading the model")
    view.hear("s/a", logging.DEBUG, "not printed")
    view.hear("s/a", logging.WARNING, "the disk is nearly full")
    now[0] = 41.6
    view.finish("s/a", 41.6)
    assert lines(view) == [
        "[ 1/2] s/a",
        "         loading the model",
        "         warning: the disk is nearly full",
        "         s/a done in 42 s",
    ]


def test_headings_say_how_long_the_rest_takes(view, now):
    view.progress.estimate = lambda names: {name: Estimate(100, True) for name in names}
    view.plan(["s/a", "s/b/student", "s/c/student"])
    view.start("s/a")
    now[0] = 120
    view.finish("s/a", 120)
    view.start("s/b/student")
    assert [line for line in lines(view) if line.startswith("[")] == [
        "[ 1/3] s/a",
        "[ 2/3] s/b/student  (about 4 min to go)",
    ]


def test_each_line_names_its_asset_if_several_are_made_at_once(view):
    view.names_assets = True
    view.plan(["s/a", "s/b"])
    view.start("s/a")
    view.start("s/b")
    view.hear("s/b", logging.INFO, "loading the model")
    view.hear("s/a", logging.INFO, "s/a: 64 examples")
    view.line("crashed; retries in 2 s", "s/a")
    view.fail("s/a")
    assert lines(view)[2:] == [
        "         s/b: loading the model",
        "         s/a: 64 examples",
        "         s/a: crashed; retries in 2 s",
        "         s/a stopped (the reason is printed at the end)",
    ]


def test_the_next_heading_says_what_has_stopped(view):
    view.plan(["s/a", "s/b"])
    view.start("s/a")
    view.fail("s/a", ["s/b"])
    view.start("s/c")
    assert lines(view)[1:] == ["without s/a, which stopped (the reason is printed at the end):", "[ 2/2] s/c"]


def test_progress_is_printed_every_ten_seconds_and_then_less_often(view, now):
    view.plan(["s/a"])
    view.start("s/a")
    for second in range(1, 100):
        now[0] = second
        hear(view, second)
    assert len([line for line in lines(view) if "steps" in line]) == 9
    for second in range(100, 1000):
        now[0] = second
        hear(view, second)
    # A line after each tenth of the time: ln(10) / ln(1.1).
    assert 20 <= len([line for line in lines(view) if "steps" in line]) <= 27
    # The end is said by the line that it is done.
    now[0] = 5000
    hear(view, 1000)
    assert lines(view) == []


def test_days_are_not_silent(view, now):
    view.plan(["s/a"])
    view.start("s/a")
    now[0] = 100_000
    hear(view, 1, 10)
    now[0] += LONGEST_S
    hear(view, 2, 10)
    assert len([line for line in lines(view) if "steps" in line]) == 2


def test_a_silent_asset_still_runs(view, now):
    view.plan(["s/a"])
    view.start("s/a")
    for second in range(0, 300, 5):
        now[0] = second
        view._look()
    assert lines(view)[1:] == [
        f"         s/a: still running, for {at}" for at in ("1 min 00 s", "2 min 00 s", "3 min 00 s", "4 min 00 s")
    ]
    view.finish("s/a", 300)
    now[0] = 1000
    view._look()
    assert lines(view) == ["         s/a done in 300 s"]


class Stream:
    def __init__(self, is_terminal):
        self.isatty = lambda: is_terminal


@pytest.mark.parametrize(
    "environment, is_terminal, why",
    [
        ({"TERM": "xterm"}, True, None),
        ({"TERM": "xterm"}, False, "no terminal"),
        ({"TERM": "dumb"}, True, "TERM is dumb"),
        ({}, True, "TERM is dumb"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, "NO_COLOR is set"),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, None),
        ({"TERM": "xterm", "CI": "true"}, True, "CI is set"),
    ],
)
def test_who_gets_plain_lines(environment, is_terminal, why):
    assert why_plain(Stream(is_terminal), environment) == why
