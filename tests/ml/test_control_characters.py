"""What controls a terminal is shown as an escape, and nothing else changes."""

import pytest

from tokenuq_ml.control_characters import escaped, escaped_line


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m red", r"\x9b31m red"),
        ("safe\rEVIL", r"safe\rEVIL"),
        ("a\x00b\x08c\x7f", r"a\x00b\x08c\x7f"),
        ("user\u202egpj.exe\u2066", r"user\u202egpj.exe\u2066"),
        ("one\u2028two", r"one\u2028two"),
        ("half \ud83d", r"half \ud83d"),
    ],
)
def test_controls_are_shown(text, shown):
    assert escaped(text) == shown
    assert escaped(shown) == shown and shown.encode()


@pytest.mark.parametrize(
    "text", ["", "two\nlines\tand a tab", "日本 é ½ 👩\u200d👩 می\u200cخواهم", "back\\slash \\x1b"]
)
def test_other_text_is_unchanged(text):
    assert escaped(text) is text or escaped(text) == text


def test_one_line():
    assert escaped_line("a\tb\n\x1bc") == r"a\tb\n\x1bc"
