"""Conventions that hold for every command: names of options, help texts, `--json`."""

import argparse
import json
import re

import pytest

from tokenuq_pipeline import cli
from tokenuq_pipeline.commands.json_output import asks_for_json, print_json

PARSERS = next(action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
COMMANDS = PARSERS.choices
SUMMARIES = {action.dest: action.help for action in PARSERS._choices_actions}
SERVES = {"ui"}
"""Commands that end by a signal, and have no result."""
SAME = (
    "study",
    "comparison",
    "yes",
    "json",
    "plain",
    "output",
    "html",
    "data_format",
    "max_length",
    "rows",
    "ablation",
)
"""Options that have the same kind of value wherever they are."""
SHORT = {"-h", "-w"}


def options(parser):
    return [action for action in parser._actions if action.option_strings and action.dest != "help"]


def flags(parser):
    return {flag for action in options(parser) for flag in action.option_strings}


def shown(action):
    return action.help is not argparse.SUPPRESS


ALL = [(name, action) for name, parser in COMMANDS.items() for action in parser._actions if action.dest != "help"]
IDS = [f"{name} {(action.option_strings or [action.dest])[0]}" for name, action in ALL]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_what_it_does(name):
    summary, description = SUMMARIES[name], COMMANDS[name].description
    assert re.match(r"[a-z]+ ", summary) and not summary.endswith(".") and len(summary) <= 90, summary
    assert not re.match(r"(\w+s|which|what|how) ", summary), "not imperative"
    assert description and re.match(r"[A-Z]\w+s ", description) and description.endswith("."), description


@pytest.mark.parametrize("name, action", ALL, ids=IDS)
def test_each_argument_has_a_help_that_names_value_and_default(name, action):
    assert action.help, "no help"
    if not shown(action):
        return
    assert action.help[0].islower() or re.match(r"[A-Z]{2,}|JSON|[A-Z]\w+'s", action.help), action.help
    assert not action.help.endswith("."), action.help
    takes_value = action.nargs != 0
    if takes_value and action.choices is None:
        assert action.metavar and action.metavar.isupper() or action.metavar == "KEY=VALUE,...", action.metavar
    if takes_value and action.default not in (None, [], argparse.SUPPRESS) and action.dest != "command":
        assert "default" in action.help, f"the default {action.default} is not named"


@pytest.mark.parametrize("name, action", ALL, ids=IDS)
def test_options_are_words_with_dashes(name, action):
    for flag in action.option_strings:
        assert flag in SHORT or re.fullmatch(r"--[a-z]+(-[a-z]+)*", flag), flag


@pytest.mark.parametrize("option", SAME)
def test_an_option_takes_the_same_everywhere(option):
    flag = f"--{option.replace('_', '-')}"
    kinds = {
        (action.nargs == 0, action.type, action.metavar)
        for parser in COMMANDS.values()
        for action in options(parser)
        if flag in action.option_strings
    }
    assert len(kinds) == 1, kinds


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - SERVES))
def test_each_command_prints_json(name):
    (option,) = (action for action in options(COMMANDS[name]) if "--json" in action.option_strings)
    assert option.nargs == 0 and "JSON" in option.help or "json" in option.help


def test_what_makes_assets_can_print_plain_lines_and_what_asks_can_be_answered():
    assert {name for name in COMMANDS if "--plain" in flags(COMMANDS[name])} == {"run", "ablate"}
    assert {name for name in COMMANDS if "--yes" in flags(COMMANDS[name])} == {"ablate", "prune"}


@pytest.mark.parametrize(
    "older, newer",
    [
        ("status --format json", "status --json"),
        ("plan --study s --format json", "plan --study s --json"),
        ("advise --format json", "advise --json"),
        ("query --format json q", "query --json q"),
        ("curate --study s --top 0.5", "curate --study s --share 0.5"),
        ("score x --model m --limit 3 --format alpaca", "score x --model m --rows 3 --data-format alpaca"),
        (
            "ablate --model m --data d --name s --format alpaca",
            "ablate --model m --data d --study s --data-format alpaca",
        ),
    ],
)
def test_older_names_mean_the_same(older, newer):
    assert cli.parser().parse_args(older.split()) == cli.parser().parse_args(newer.split())


@pytest.mark.parametrize(
    "command", ["run --study nope", "status --study nope", "verify --study nope", "plan --study nope"]
)
def test_an_error_is_json_too(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    code = cli.main([*command.split(), "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found.keys() == {"error", "exit_code"} and found["exit_code"] == code == 2
    assert found["error"].startswith("studies.yaml: no study 'nope'") and err == f"error: {found['error']}\n"


@pytest.mark.parametrize("command", ["run --json", "status --nope --json", "plan --format json --study", "walk --json"])
def test_wrong_usage_is_json_too(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(command.split())
    out, err = capsys.readouterr()
    assert end.value.code == 2 and json.loads(out)["exit_code"] == 2
    assert json.loads(out)["error"] in err and err.startswith("usage: ")


def test_wrong_usage_without_json_leaves_standard_output_empty(capsys):
    with pytest.raises(SystemExit):
        cli.main(["status", "--nope"])
    assert capsys.readouterr().out == ""


def test_a_bug_is_json_and_a_traceback(monkeypatch, capsys):
    def fail(options):
        raise ZeroDivisionError("in here")

    monkeypatch.setattr("tokenuq_pipeline.commands.doctor.doctor_command", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out) == {"error": "ZeroDivisionError: in here", "exit_code": 1}


def test_json_holds_what_json_can_hold(capsys, tmp_path):
    print_json({"path": tmp_path, "nan": [float("nan"), -float("inf"), 1.5], "control": "\x1b[2J"})
    out = capsys.readouterr().out
    assert (
        json.loads(out) == {"path": str(tmp_path), "nan": [None, None, 1.5], "control": "\x1b[2J"} and "\x1b" not in out
    )


@pytest.mark.parametrize(
    "arguments, asked",
    [("run --json", True), ("plan --format json", True), ("plan --format=json", True), ("plan --format text", False)],
)
def test_arguments_that_cannot_be_parsed_ask_for_json(arguments, asked):
    assert asks_for_json(arguments.split()) == asked
