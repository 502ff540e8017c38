"""`tokenuq plan --cluster` as text and JSON, and options that do not go together."""

import json

import pytest

from tests.support.paths import ROOT
from tokenuq_ml.config.load import load_config
from tokenuq_pipeline import cli

pytestmark = pytest.mark.slow

SIXTY_FOUR = "nodes=64,gpus=8,card=h100"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    return tmp_path


def test_json_has_the_figures_and_money_only_with_a_price(capsys):
    """docs/scale.md has the text, which tests/docs/test_scale.py compares."""
    assert cli.main(["plan", "--cluster", f"{SIXTY_FOUR},price=2.5", "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    totals = made["totals"]
    assert totals["cost"] == pytest.approx(2.5 * totals["gpu_hours"]) and totals["gpu_hours"] > 0
    assert totals["seconds"] == pytest.approx(sum(stage["seconds"] for stage in made["stages"]))
    longest = max(made["stages"], key=lambda stage: stage["seconds"])
    assert totals["bottleneck"] == {"asset": longest["asset"], "waits_for": longest["waits_for"]}
    assert {"baseline_teacher", "student", "evaluation", "ablation_report"} <= {
        stage["asset"].rpartition("/")[2] for stage in made["stages"]
    }


def test_a_study_is_planned_with_another_model_and_other_data(capsys):
    asked = ["plan", "--study", "alpaca_gemma_2_2b", "--cluster", "nodes=2,gpus=8,card=a100", "--format", "json"]
    assert cli.main([*asked, "--model", "Llama-3.1-8B", "--response-tokens", "1e9"]) == 0
    larger = json.loads(capsys.readouterr().out)
    assert larger["stages"][0]["asset"] == "models/gemma_2_2b" and larger["totals"]["cost"] is None
    assert larger["parameters"] == pytest.approx(8.03e9, rel=1e-2)
    rows = {table["name"]: table["rows"] for table in larger["tables"]}
    epochs = load_config(ROOT / "config").studies["alpaca_gemma_2_2b"].train.epochs
    assert rows["selections"] == pytest.approx(epochs * 1e9, rel=0.01)


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "name a study with --study, or a cluster"),
        (["--study", "quickstart", "--model", "Llama-3.1-8B"], "--model: only with --cluster"),
        (["--study", "quickstart", "--response-tokens", "1e9"], "--response-tokens: only with --cluster"),
        (["--cluster", SIXTY_FOUR, "--response-tokens", "many"], "'many' is not a number from 1"),
        (["--cluster", SIXTY_FOUR, "--study", "nope"], "no study 'nope'"),
        (["--cluster", "nodes=64"], "gpus, card missing"),
    ],
)
def test_options_that_are_not_understood_are_one_sentence(options, said, capsys):
    assert cli.main(["plan", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
