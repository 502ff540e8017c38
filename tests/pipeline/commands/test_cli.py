"""The command line: waves, bad usage, closing messages, and the folders that it creates."""

import os

import pytest
import yaml

from tokenuq_pipeline import cli
from tokenuq_pipeline.automation.run_log import AssetTiming
from tokenuq_pipeline.commands import make_assets, run
from tokenuq_pipeline.runtime import paths
from tokenuq_pipeline.runtime.store import Store


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    return tmp_path


@pytest.mark.slow
def test_an_unknown_study_is_a_one_line_error(folders, capsys):
    assert cli.main(["run", "--study", "nope"]) == 2
    assert capsys.readouterr().err.startswith("error: studies.yaml: no study 'nope'; there are quickstart, ")


@pytest.mark.slow
def test_an_unknown_ablation_is_a_one_line_error(folders, capsys):
    assert cli.main(["run", "--study", "quickstart", "--ablation", "mle", "nope"]) == 2
    assert capsys.readouterr().err == (
        "error: studies.yaml: quickstart has no ablation 'nope'; it has mle, masked_mle_top25, paper_top25\n"
    )


def test_a_broken_configuration_is_a_one_line_error(folders, monkeypatch, capsys):
    (folders / "studies.yaml").write_text("more: {model: none, dataset: gsm_symbolic, ablations: [mle]}\n")
    monkeypatch.setenv("TOKENUQ_CONFIG", str(folders))
    assert cli.main(["run", "--study", "more"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "more.model: 'none' is not in models.yaml" in err and err.count("\n") == 1


def test_a_missing_configuration_folder_is_named(folders, monkeypatch, capsys):
    monkeypatch.setenv("TOKENUQ_CONFIG", str(folders / "typo"))
    assert cli.main(["run", "--study", "quickstart"]) == 2
    assert "TOKENUQ_CONFIG" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["run"], ["walk"]])
def test_bad_usage_exits_with_code_2(arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2


def test_help_says_when_the_report_is_rebuilt(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    assert "report is rebuilt" in " ".join(capsys.readouterr().out.split())


def test_dagsters_home_is_made_absolute_with_telemetry_off_and_left_alone_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", "here")
    assert paths.dagster_home() == tmp_path / "here" and os.environ["DAGSTER_HOME"] == str(tmp_path / "here")
    settings = yaml.safe_load((tmp_path / "here" / "dagster.yaml").read_text())
    assert settings["telemetry"] == {"enabled": False} and settings["concurrency"]["pools"]["granularity"] == "op"
    (tmp_path / "here" / "dagster.yaml").write_text("mine: 1\n")
    paths.dagster_home()
    assert (tmp_path / "here" / "dagster.yaml").read_text() == "mine: 1\n"


def test_the_times_of_the_run_table_add_up():
    lines = make_assets.time_table([AssetTiming("s/a", 61.26, 1234.0), AssetTiming("s/longer", 1.0, None)]).splitlines()
    assert lines[1].split() == ["s/a", "61.3", "s", "1,234", "MiB"] and lines[-1].split() == ["total", "62.3", "s"]


def test_the_reports_path_is_printed_once_there_is_one(tmp_path, capsys):
    store = Store(tmp_path)
    run.print_report(store, "s")
    assert capsys.readouterr().out == ""
    page = store.path("ablation_report/study=s/report.html")
    page.parent.mkdir(parents=True)
    page.touch()
    run.print_report(store, "s")
    assert capsys.readouterr().out == f"\nreport: {page}\n"
