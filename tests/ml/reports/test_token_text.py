"""Coloured tokens in the terminal: their styles, and the output without colour."""

import io

import polars as pl
import pytest
from rich.console import Console

from tokenuq_ml.reports.token_text import FAINT, LISTED, example_text, full_colour, printable, shade


@pytest.fixture
def rows():
    count = 12
    return pl.DataFrame(
        {
            "example_id": ["toy/1"] * count,
            "split": ["test"] * count,
            "position": range(5, 5 + count),
            "token": [f" w{n}" for n in range(count - 3)] + ["[bold]", "\x1b[31m", "\n"],
            "category": ["word"] * count,
            "loss": [n / 10 for n in range(count)],
            "entropy": [0.5] * count,
            "bald": [0.25] * count,
            "rank": [0] * count,
            "selected": [n == 0 for n in range(count)],
            "first_choice": ["a"] * (count - 1) + [None],
        }
    )


def printed(text, **options) -> str:
    out = io.StringIO()
    Console(file=out, width=100, highlight=False, markup=False, emoji=False, **options).print(text)
    return out.getvalue()


def test_without_colour_text_and_numbers_are_printed(rows):
    text = printed(example_text(rows, "loss", 1.0, "What?"))
    assert "\x1b" not in text and "What?" in text
    assert " w0 w1 w2 w3 w4 w5 w6 w7 w8[bold]�[31m\n" in text
    assert "toy/1  test, 12 tokens, mean loss 0.55, entropy 0.5, BALD 0.25 nats" in text
    listed = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert [int(line[0]) for line in listed] == [16, 15, 14, 13, 12, 11, 10, 9][:LISTED]


def test_tokens_are_coloured_by_their_value(rows):
    body = example_text(rows, "loss", 1.0).renderables[2]
    styles = {body.plain[span.start : span.end]: span.style for span in body.spans}
    assert " w0" not in styles and styles[" w1"] == shade(0.1) != styles[" w2"] == shade(0.2)
    assert styles["\n"] == shade(1.0) == shade(7.0)
    assert "\x1b[" in printed(example_text(rows, "loss", 1.0), force_terminal=True, color_system="truecolor")


def test_selected_tokens_come_first_and_are_fully_coloured(rows):
    body = example_text(rows, "selected", full_colour(rows, "selected"))
    text = printed(body)
    assert "1 selected" in text
    first = next(line.split() for line in text.splitlines() if line.strip()[:1].isdigit())
    assert first[0] == "5" and "yes" in first
    assert [(span.start, span.style) for span in body.renderables[2].spans] == [(0, shade(1.0))]


def test_the_shade_grows_with_the_value():
    assert shade(0.0) == shade(FAINT) == shade(None) == shade(float("nan")) == ""
    assert shade(1.0) == "black on #e25449"


def test_control_characters_are_replaced():
    assert printable("a\x1b]0;x\x07\tb\n\u202e") == "a�]0;x�\tb\n�"
