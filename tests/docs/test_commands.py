"""Every `tokenuq`, `make` and `python -m` command that the pages show is one that exists."""

import importlib.util
import re
import shlex

import pytest

from tests.support.markdown import PAGES, fenced_blocks, page_name
from tests.support.paths import ROOT
from tokenuq_pipeline.cli import parser

TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(page) -> list[list[str]]:
    """The words of each command of the page's shell blocks, without comments and environment variables."""
    found = []
    for block in fenced_blocks(page.read_text(), "bash"):
        pending = ""
        for line in block.splitlines():
            pending += line + "\n"
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:
                # A quoted query goes on in the next line.
                continue
            pending = ""
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                found.append(words)
        assert not pending.strip(), f"{page_name(page)}: unbalanced quotes in a shell block"
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_are_accepted(page, capsys):
    for words in commands(page):
        program, *arguments = words
        if program.endswith("tokenuq"):
            try:
                parser().parse_args(arguments)
            except SystemExit as rejected:
                assert not rejected.code, f"{shlex.join(words)}\n{capsys.readouterr().err}"
        elif program == "make":
            # Variables, and the environment that they name.
            targets = {argument for argument in arguments if "=" not in argument and not argument.endswith("/.dev")}
            assert targets <= TARGETS, shlex.join(words)
        elif "-m" in arguments and program.endswith("python"):
            module = arguments[arguments.index("-m") + 1]
            assert importlib.util.find_spec(module) is not None, shlex.join(words)


def test_the_targets_that_text_mentions_exist():
    mentioned = {name for page in PAGES for name in re.findall(r"`make ([\w-]+)`", page.read_text())}
    assert mentioned <= TARGETS
