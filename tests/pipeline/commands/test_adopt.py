"""`tokenuq adopt`: what it prints, and its exit code. What it does is tested in `automation/test_adoption.py`."""

import json

import pytest

from tokenuq_pipeline import cli
from tokenuq_pipeline.automation.adoption import Adoption
from tokenuq_pipeline.commands import adopt


def test_an_empty_store_has_nothing_to_adopt(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    assert cli.main(["adopt"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'store'}: holds nothing of any study\n"
    assert not (tmp_path / "home").exists()


def test_an_unknown_study_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert cli.main(["adopt", "--study", "nope"]) == 2
    assert capsys.readouterr().err.startswith("error: studies.yaml: no study 'nope'; there are quickstart, ")


@pytest.mark.parametrize(
    "found, text, code",
    [
        (Adoption(["a", "b"]), "2 assets adopted in 1.5 s, nothing recomputed; 2 assets recorded before", 0),
        (
            Adoption(["a"], refused={"b": "waits for c, which is not up to date"}, stale={"c": "was never made"}),
            "c: not adopted: was never made\nb: not adopted: waits for c, which is not up to date\n"
            "1 asset adopted in 1.5 s, nothing recomputed; 1 asset recorded before",
            3,
        ),
        (
            Adoption(
                ["a", "b"], refused={"c": "x differs"}, damaged={"c": "x differs"}, failed_checks=["a: check: no"]
            ),
            "c: not adopted: x differs\ncheck failed: a: check: no\n"
            "2 assets adopted in 1.5 s, nothing recomputed; 1 asset recorded before",
            1,
        ),
    ],
)
def test_text_and_exit_code(found, text, code):
    assert adopt.as_text(found, 4, 1.5) == text and adopt.exit_code(found) == code
    as_json = adopt.as_json(found, 4, 1.54)
    assert as_json["adopted"] == found.adopted and as_json["seconds"] == 1.5
    assert f"{as_json['recorded_before']} asset" in text and set(as_json["stale"]) == set(found.stale)


def test_an_empty_store_is_json_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    assert cli.main(["adopt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adopted"] == [] and found["recorded_before"] == 0
