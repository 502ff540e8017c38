"""`tokenuq status`: one line per study, details on request, and an exit code that says whether anything is stale."""

import json

import pytest

from tests.support.toy_pipeline import STUDY, config_with, toy_config
from tokenuq_pipeline import cli
from tokenuq_pipeline.commands import status
from tokenuq_pipeline.commands.status_text import StudyStatus, as_lines, as_table, is_stale, where_details_are


def row(state, asset="study/student", reason="because"):
    return {"asset": asset, "state": state, "reason": reason}


@pytest.mark.parametrize(
    "rows, made, state, line",
    [
        ([], True, "fresh", "5 assets"),
        ([row("missing")] * 4, False, "not made", "4 assets to make"),
        ([row("missing")] * 2, True, "incomplete", "3 fresh, 2 missing"),
        ([row("stale"), row("waiting"), row("missing")], True, "stale", "2 fresh, 1 stale, 1 waiting, 1 missing"),
        ([row("unchecked"), row("waiting")], True, "unchecked", "3 fresh, 1 unchecked, 1 waiting"),
        ([row("stale"), row("damaged")], True, "damaged", "3 fresh, 1 damaged, 1 stale"),
    ],
)
def test_a_study_is_one_line_with_its_state_and_counts(rows, made, state, line):
    study = StudyStatus("small", 5, rows, made)
    assert (study.state, study.line) == (state, line) and as_lines([study]) == f"small  {state}  {line}"
    assert sum(study.counts.values()) == 5
    found = study.as_json()
    assert found["study"] == "small" and found["state"] == state and found["fresh"] == 5 - len(rows)
    assert is_stale(rows) == (state in ("stale", "unchecked", "damaged"))
    assert (where_details_are([study]) is None) == (state in ("fresh", "not made"))


def test_lines_and_tables_are_aligned():
    studies = [StudyStatus("quickstart", 21, [], True), StudyStatus("matrix", 1, [row("missing")], False)]
    assert as_lines(studies) == "quickstart  fresh     21 assets\nmatrix      not made  1 asset to make"
    rows = [row("stale"), row("waiting", asset="study/x")]
    assert as_table(rows) == "study/student  stale    because\nstudy/x        waiting  because"
    assert as_table([]) == "" and "no study is enabled" in as_lines([])


class Here:
    """A store, Dagster's home and a configuration that the command uses."""

    def __init__(self, patch, folder, config):
        self.patch, self.config = patch, config
        patch.setenv("TOKENUQ_HOME", str(folder / "store"))
        patch.setenv("DAGSTER_HOME", str(folder / "dagster_home"))
        patch.delenv("TOKENUQ_STUDIES", raising=False)
        patch.setattr(status, "configuration", lambda: self.config)

    def add(self, name, **changes):
        """A copy of the toy study under another name."""
        study = self.config.studies[STUDY].model_copy(update={"name": name, **changes})
        self.config.studies[name] = study


@pytest.fixture
def here(made_study, tmp_path, monkeypatch):
    made_study.copy(tmp_path)
    return Here(monkeypatch, tmp_path, toy_config())


def command(capsys, *arguments):
    code = cli.main(["status", *arguments])
    return code, capsys.readouterr().out


def test_nothing_made_is_nothing_stale_and_opens_no_dagster(tmp_path, monkeypatch, capsys):
    Here(monkeypatch, tmp_path, toy_config())
    assert command(capsys) == (0, f"{STUDY}  not made  17 assets to make\n")
    assert command(capsys, "--study", STUDY) == (0, f"{STUDY}  not made  17 assets to make\n")
    code, out = command(capsys, "--study", STUDY, "--format", "json")
    rows = json.loads(out)
    assert code == 0 and [one["asset"] for one in rows][:3] == ["models/tiny", "datasets/toy", "datasets/extra"]
    assert {(one["state"], one["reason"]) for one in rows} == {("missing", "was never made")} and len(rows) == 17
    assert not (tmp_path / "dagster_home").exists() and not (tmp_path / "store").exists()


@pytest.mark.slow
def test_after_a_run_its_study_is_fresh_and_another_is_not_made(here, capsys):
    here.add("later")
    here.add("big", enabled=False)
    assert command(capsys) == (0, "study  fresh     17 assets\nlater  not made  14 assets to make\n")
    here.patch.setenv("TOKENUQ_STUDIES", "b*")
    code, out = command(capsys, "--format", "json")
    assert code == 0 and [(one["study"], one["state"]) for one in json.loads(out)] == [
        ("study", "fresh"),
        ("later", "not made"),
        ("big", "not made"),
    ]
    assert json.loads(out)[1] | {"missing": 14, "fresh": 3, "stale": 0} == json.loads(out)[1]
    here.patch.setenv("TOKENUQ_STUDIES", "bug")
    assert cli.main(["status"]) == 2 and "TOKENUQ_STUDIES: 'bug' matches no study" in capsys.readouterr().err
    # Of a study that is named, the variable says nothing.
    assert command(capsys, "--study", "later", "--study", "study")[0] == 0
    code, out = command(capsys, "--all")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["study", "later", "big"]


@pytest.mark.slow
def test_what_is_stale_is_counted_and_listed_on_request(here, capsys):
    here.config = toy_config(quantile=0.5)
    here.add("later")
    code, out = command(capsys)
    assert code == 3 and out.splitlines() == [
        "study  stale     13 fresh, 2 stale, 2 waiting",
        "later  not made  14 assets to make",
        "which assets, and why: tokenuq status --study study",
    ]
    code, out = command(capsys, "--all")
    lines = out.splitlines()
    assert code == 3 and lines[:3] == [
        "study  stale     13 fresh, 2 stale, 2 waiting",
        "later  not made  14 assets to make",
        "",
    ]
    assert lines[3].split() == ["study/top/student", "stale", "ablation.select.quantile:", "0.25", "->", "0.5"]
    assert len(lines) == 3 + 4 and not any("later/" in line for line in lines)
    code, out = command(capsys, "--study", STUDY, "--format", "json")
    assert code == 3 and json.loads(out)[0]["asset"] == "study/top/student" and len(json.loads(out)) == 4
    # Another study of the same data is not stale because of this one.
    assert command(capsys, "--study", "later")[0] == 0


@pytest.mark.slow
def test_a_new_ablation_is_missing_and_makes_the_report_stale(here, capsys):
    here.config = toy_config(ablations=["mle", "top", "more"])
    here.config.ablations["more"] = here.config.ablations["top"].model_copy(update={"name": "more", "seed": 3})
    code, out = command(capsys, "--study", STUDY)
    assert code == 3 and out.splitlines()[0] == "study  stale  16 fresh, 1 stale, 3 missing"
    assert [line.split()[1] for line in out.splitlines()[2:]] == ["missing", "missing", "missing", "stale"]


@pytest.mark.slow
def test_data_of_other_studies_is_not_looked_at(made_study_with_file, tmp_path, monkeypatch, capsys):
    made_study_with_file.copy(tmp_path)
    here = Here(monkeypatch, tmp_path, config_with(made_study_with_file.folder.parent))
    here.add("other", dataset="huge", ood=())
    here.config.datasets["huge"] = here.config.datasets["extra"].model_copy(
        update={"name": "huge", "path": "/nowhere/at/all", "sizes": {"train": 1, "validation": 1, "test": 1}}
    )
    assert command(capsys) == (0, "study  fresh     17 assets\nother  not made  15 assets to make\n")
