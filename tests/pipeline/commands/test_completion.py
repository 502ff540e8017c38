"""The shell's completions are the names of the configuration, and `--json` is the format json."""

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tokenuq_pipeline.cli import COMMANDS, parser
from tokenuq_pipeline.commands import completion


def completions(line: str) -> list[str]:
    """What the shell is offered after a line, as argcomplete's shell function asks for it."""
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    code = "import os, sys; os.dup2(1, 8); from tokenuq_pipeline.cli import main; sys.argv[0] = 'tokenuq'; main()"
    environment = {**os.environ, **asked, "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    return [found.strip() for found in done.stdout.split("\n") if found.strip()]


@pytest.mark.slow
def test_names_of_the_configuration_are_offered(monkeypatch):
    monkeypatch.delenv("TOKENUQ_CONFIG", raising=False)
    assert completions("tokenuq st") == ["status"]
    assert {"quickstart"} == set(completions("tokenuq run --study quick"))
    assert "paper_top25" in completions("tokenuq run --study quickstart --ablation paper")


def test_every_option_with_names_has_a_completer():
    top = parser()
    completion._add_completers(top)
    commands = next(action for action in top._actions if action.dest == "command").choices
    for command in commands.values():
        for action in command._actions:
            assert hasattr(action, "completer") == (action.dest in completion.NAMES and action.nargs != 0)


def test_a_wrong_configuration_offers_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENUQ_CONFIG", str(tmp_path / "none"))
    assert completion._completer("study")("q") == []


def test_paths_are_offered_beside_names(monkeypatch, tmp_path):
    monkeypatch.delenv("TOKENUQ_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smol.jsonl").touch()
    assert {"smollm2_135m"} <= set(completion._completer("model")("smol"))
    assert "smol.jsonl" in completion._completer("model")("smol")


@pytest.mark.parametrize("command", ["plan", "status", "advise", "query"])
def test_json_is_a_format(command):
    assert command in {module.__name__.rpartition(".")[2] for module in COMMANDS}
    asked = [command, *(["SELECT 1"] if command == "query" else [])]
    assert parser().parse_args([*asked, "--json"]).format == "json"
    assert parser().parse_args(asked).format == (None if command == "query" else "text")
