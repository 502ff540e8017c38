"""Progress lines: what a stage reports is what `tokenuq run` reads of them."""

import pytest

from tokenuq_ml.progress import Measured, Progress, measured, progress_line


class Lines:
    def __init__(self):
        self.lines, self.tokens = [], 0

    def info(self, message):
        self.lines.append(message)

    def warning(self, message):
        raise AssertionError(message)

    def count_tokens(self, tokens):
        self.tokens += tokens


@pytest.mark.parametrize(
    "what, note",
    [
        ("study/x/evaluation loss", ""),
        ("study/reference_evaluation: teacher IF-Eval", "at 50%: loss 1.8, 7 s left over"),
    ],
)
def test_a_line_is_read_as_it_was_written(what, note):
    line = progress_line(what, 1_536, 12_000, "tokens", "177.8 tokens/s, of 3 pieces", 59.6, note)
    assert measured(line) == Measured(what, 1_536, 12_000, "tokens", "177.8 tokens/s, of 3 pieces", 60)


@pytest.mark.parametrize(
    "line",
    [
        "toy: 32 train, 8 validation, 16 test",
        "study: 64 examples, 15 cut at 256 tokens, 0 dropped",
        "stopping; the stage has 30 s to write a checkpoint",
        "study/x: 1/4 steps, loss 1.2",
        "",
    ],
)
def test_other_messages_are_no_progress(line):
    assert measured(line) is None


def test_a_counter_reports_its_rate_and_time_left_and_leaves_out_what_was_skipped(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tokenuq_ml.progress.time.monotonic", lambda: now[0])
    reporter = Lines()
    progress = Progress(reporter, "score", 1_000, "tokens")
    progress.skip(500)
    now[0] = 4.0
    progress.add(100)
    assert not reporter.lines
    now[0] = 10.0
    progress.add(100)
    assert measured(reporter.lines[-1]) == Measured("score", 700, 1_000, "tokens", "20.0 tokens/s", 15)
    progress.add(300, "loss 2.5")
    assert measured(reporter.lines[-1]).seconds_left == 0 and reporter.lines[-1].endswith(", 0 s left, loss 2.5")
    assert reporter.tokens == 500
