"""A run on a terminal, as an independent emulator shows it; and the frames that are drawn."""

import logging

import pytest
from rich.console import ConsoleDimensions

from tests.support.screen import Screen
from tokenuq_ml.progress import progress_line
from tokenuq_pipeline.runtime.console import Console
from tokenuq_pipeline.runtime.live_frame import frame
from tokenuq_pipeline.runtime.live_view import LiveView
from tokenuq_pipeline.runtime.run_progress import Estimate, RunProgress, State

ABLATIONS = ("mle", "paper_top25")
NAMES = ["datasets/d", "s/teacher", *(f"s/{one}/{stage}" for one in ABLATIONS for stage in ("student", "evaluation"))]


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def progress(now):
    def estimates(names):
        return {name: Estimate(100.0, name != "datasets/d") for name in names}

    return RunProgress("study s", estimates, clock=lambda: now[0])


@pytest.fixture
def screen():
    screen = Screen()
    yield screen
    screen.close()


@pytest.fixture
def view(progress, screen, monkeypatch):
    """A view that is drawn when a test asks for it."""
    monkeypatch.setattr("tokenuq_pipeline.runtime.live_view.REFRESH_S", 1000.0)
    console = Console()
    console.stream = screen.stream
    return LiveView(console, progress, screen.stream)


def drawn(view, screen):
    view._look()
    return screen.lines


def half_made(view, now):
    """Two assets are made, and the third is at a quarter of 40 s."""
    view.plan(NAMES)
    for name in NAMES[:2]:
        view.start(name)
        now[0] += 40
        view.finish(name, 40)
    view.start("s/mle/student")
    now[0] += 10
    line = progress_line("s/mle/student", 1, 4, "steps", "loss 1.443, 39 response tokens/s", 30)
    view.hear("s/mle/student", logging.INFO, line)


def text(progress, columns, lines, ascii_only=False):
    return frame(progress, ConsoleDimensions(columns, lines), ascii_only).plain.split("\n")


def test_each_asset_is_a_line_and_the_last_one_says_how_long_it_takes(view, screen, now):
    with view:
        half_made(view, now)
        lines = drawn(view, screen)
        assert [line.split()[:2] for line in lines[:6]] == [
            ["✓", "datasets/d"],
            ["✓", "s/teacher"],
            ["▸", "s/mle/student"],
            ["·", "s/mle/evaluation"],
            ["·", "s/paper_top25/student"],
            ["·", "s/paper_top25/evaluation"],
        ]
        assert lines[0].endswith("40 s") and "25%  1/4 steps · 30 s left · loss 1.443" in lines[2]
        assert lines[3].endswith("waiting") and len(lines) == 7
        # 30 s of this student, 40 s of the other, and two evaluations at the rate of all: 80 of 200 planned seconds.
        assert lines[6] == "study s · 2 of 6 done · 1 min 30 s · about 2 min to go"
        assert screen.cursor_is_hidden
    # What is made is printed as a table when all is done.
    assert screen.lines == [""] and not screen.cursor_is_hidden


def test_warnings_and_other_lines_stand_above(view, screen, now):
    with view:
        half_made(view, now)
        view.hear("s/mle/student", logging.INFO, "s/mle/student: resuming from step 1")
        view.hear("s/mle/student", logging.WARNING, "the disk is nearly full\nmake space")
        view.hear("s/mle/student", logging.DEBUG, "not shown")
        view.line("crashed; retries in 2 s", "s/mle/student")
        view.console.line("to rebuild: s/x")
        lines = drawn(view, screen)
    assert [line[10:] for line in lines[:4]] == [
        "s/mle/student: warning: the disk is nearly full",
        "make space",
        "s/mle/student: crashed; retries in 2 s",
        "to rebuild: s/x",
    ]
    assert lines[4].startswith("✓ datasets/d") and "resuming from step 1" in lines[6] and len(lines) == 11
    # They stay.
    assert screen.lines == lines[:4]


def test_failures_and_what_waits_for_them_are_shown_and_stay_if_the_run_stops(view, screen, now):
    with view:
        half_made(view, now)
        view.fail("s/mle/student", ["s/mle/evaluation"])
        view.leave()
    lines = screen.lines
    assert lines[2].split() == ["✗", "s/mle/student", "failed"]
    assert lines[3].split() == ["–", "s/mle/evaluation", "not", "made"]
    assert "2 of 6 done · 1 failed" in lines[6] and not screen.cursor_is_hidden


def test_a_window_that_becomes_narrow_is_drawn_again(view, screen, now):
    with view:
        half_made(view, now)
        view.console.line("a line that stays")
        drawn(view, screen)
        screen.resize(40, 12)
        lines = drawn(view, screen)
        assert lines[0].endswith("a line that stays") and len(lines) == 8
        assert lines[3].startswith("▸ s/mle/student") and "25%" in lines[3] and "━" not in lines[3]
        assert all(len(line) < 40 for line in lines)
        screen.resize(120, 12)
        assert "39 response tokens/s" in drawn(view, screen)[3]


def test_a_terminal_that_is_gone_stops_the_drawing_only(view, screen, now, capsys):
    with view:
        half_made(view, now)
        drawn(view, screen)
        screen.hang_up()
        view.console.other_stream = open("/dev/null", "w")
        view.console.line("lost")
        assert view.console.has_lost_stream and view.console.above is None
        assert view._look() is True
        view.finish("s/mle/student", 40)
    assert view.progress.assets["s/mle/student"].seconds == 40
    view.console.other_stream.close()


def test_an_error_in_a_run_leaves_a_usable_terminal(view, screen, now):
    with pytest.raises(KeyboardInterrupt), view:
        half_made(view, now)
        drawn(view, screen)
        raise KeyboardInterrupt
    assert not screen.cursor_is_hidden and view.console.above is None


def test_control_characters_of_names_and_messages_do_not_reach_the_terminal(view, screen):
    with view:
        view.plan(["s/a"])
        view.start("s/a")
        view.hear("s/a", logging.WARNING, "\x1b]0;title\x07")
        view.hear("s/a", logging.INFO, "\x1b[31mred\x07 and \u202eturned")
        shown = "\n".join(drawn(view, screen))
    assert "\\x1b]0;title\\x07" in shown and "\\x1b[31mred\\x07 and \\u202eturned" in shown
    assert b"\x1b]0;" not in screen.raw and b"\x07" not in screen.raw


@pytest.mark.parametrize("columns", [10, 20, 39, 56, 80, 200])
@pytest.mark.parametrize("lines", [1, 3, 8, 50])
def test_a_frame_fits_every_window(view, now, columns, lines):
    half_made(view, now)
    view.hear("s/mle/student", logging.INFO, "a message in wide characters: " + "漢字" * 50)
    found = frame(view.progress, ConsoleDimensions(columns, lines))
    assert len(found.plain.split("\n")) <= max(lines - 1, 2)
    assert all(line.cell_len < max(columns, 11) for line in found.split("\n"))


def test_more_assets_than_lines_are_summed_up(progress, now):
    names = [f"s/a{number}/student" for number in range(40)]
    progress.plan(names)
    for name in names[:20]:
        progress.start(name)
        progress.finish(name, 3)
    progress.start(names[20])
    progress.assets[names[4]].state = State.FAILED
    progress.fail([names[21]])
    lines = text(progress, 80, 12)
    assert len(lines) == 11
    assert lines[0] == "✓ 16 done before, in 48 s" and lines[-2] == "· 16 more wait"
    # What has failed, what was done last, what runs, and what comes next.
    assert [line.split()[1] for line in lines[1:-2]] == [names[number] for number in (4, 17, 18, 19, 20, 21, 22, 23)]


def test_more_running_assets_than_lines_leave_the_rest_out(progress):
    names = [f"s/a{number}/student" for number in range(40)]
    progress.plan(names)
    for name in names[:30]:
        progress.start(name)
    lines = text(progress, 80, 10)
    assert len(lines) == 9 and lines[-2] == "… 33 more" and lines[0].startswith("▸ s/a0/student")


def test_a_terminal_without_unicode_gets_other_signs(view, now):
    half_made(view, now)
    lines = text(view.progress, 100, 24, ascii_only=True)
    assert all(line.isascii() for line in lines)
    assert lines[0].startswith("+ datasets/d") and "####............  25%" in lines[2]


def test_without_estimates_nothing_is_said_of_the_time_to_go(now):
    progress = RunProgress("comparison c", clock=lambda: now[0])
    progress.plan(["comparisons/c"])
    progress.start("comparisons/c")
    now[0] += 3
    assert text(progress, 80, 24)[-1] == "comparison c · 0 of 1 done · 3 s"


def test_a_run_that_has_measured_nothing_yet_is_estimating(progress):
    progress.plan(NAMES)
    assert text(progress, 80, 24)[-1] == "study s · 0 of 6 done · 0 s · estimating the time to go"
