"""docs/scale.md: its plan is what the command prints, its examples give what they show."""

import doctest

from tests.support.markdown import fenced_blocks
from tests.support.paths import ROOT
from tokenuq_pipeline import cli

PAGE = ROOT / "docs/scale.md"


def test_the_plan_is_what_the_command_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.delenv("TOKENUQ_CONFIG", raising=False)
    (shown,) = fenced_blocks(PAGE.read_text(), "text")
    assert cli.main(["plan", "--cluster", "nodes=64,gpus=8,card=h100"]) == 0
    assert capsys.readouterr().out == shown
    # No store is opened or made, and no money is named without a price.
    assert not any(tmp_path.iterdir()) and "per GPU-hour" not in shown


def test_its_examples_give_what_they_show():
    outcome = doctest.testfile(str(PAGE), module_relative=False)
    assert outcome.attempted == 2 and not outcome.failed
