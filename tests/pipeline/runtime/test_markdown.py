"""Text from data in the UI's Markdown."""

import re

import pytest

from tokenuq_pipeline.runtime.markdown import JOINER, fenced, plain

ATTACKS = (
    "![x](http://evil.example/a.png)",
    "[click](javascript:alert(1))",
    "[click][ref]",
    "<img src=x onerror=alert(1)>",
    "<https://evil.example>",
    "https://evil.example/path",
    "www.evil.example",
    "me@evil.example",
    "`code` **bold** _it_ ~~gone~~",
    "a | b \\| c",
    "# heading",
    "&lt;script&gt;",
    "\\[escaped\\](x)",
    "- list",
    "\x1b[31mred\u202eflipped",
)


@pytest.mark.parametrize("text", ATTACKS)
def test_nothing_of_a_text_is_interpreted(text):
    shown = plain(text)
    assert not re.search(r"!\[|\]\(|\]\[|<\w|`|\*|(?<!&)#|://|www\.|\w@", shown)
    # A bar ends a cell unless an odd number of backslashes stands before it.
    assert all(len(row[1]) % 2 for row in re.finditer(r"(\\*)\|", shown))
    assert "\x1b" not in shown and "\u202e" not in shown


def test_an_ordinary_text_stays_readable():
    assert plain("What is 3-4? It's -1, i.e. a/b: 50%; x = y.") == "What is 3-4? It's -1, i.e. a/b: 50%; x &#61; y."
    assert plain("https://a") == f"https:{JOINER}//a"


@pytest.mark.parametrize("inside", ["", "```", "````\n# heading", "a `b` c", "~~~"])
def test_a_fence_holds_what_is_inside(inside):
    first, *lines, last = fenced(inside).splitlines()
    assert first == last and set(first) == {"`"} and len(first) >= 3
    assert not any(line.startswith(first) for line in lines)


def test_secrets_are_not_shown():
    token = "hf_" + "a1B2c3D4" * 4
    assert token not in plain(token) and token not in fenced(f"401 for {token}")
