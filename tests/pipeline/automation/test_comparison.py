"""Comparisons of studies: what they need, one run per study and one for the page, and tables that may be missing."""

import argparse
import contextlib

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_ml.config.comparison import ComparisonSpec, FrontComparison
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.shown_studies import config_of, shown_comparisons, shown_config
from tokenuq_pipeline.automation.comparison_targets import comparison_key, study_targets
from tokenuq_pipeline.automation.jobs import comparison_job
from tokenuq_pipeline.automation.study_runner import StudyRunner
from tokenuq_pipeline.commands import run_comparison, status
from tokenuq_pipeline.commands.common import Project
from tokenuq_pipeline.commands.make_assets import make
from tokenuq_pipeline.runtime.console import CONSOLE
from tokenuq_pipeline.runtime.places import manifest_place
from tokenuq_pipeline.runtime.pruning import reason_of
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import places_of

pytestmark = pytest.mark.slow

FRONT = FrontComparison(name="page", kind="front", studies=(STUDY,))


class Analyses(ComparisonSpec):
    """Reads one table of each study, and no ablation."""

    STUDY_TABLES = ("uncertainty_analysis",)


class WhatExists(ComparisonSpec):
    """Reads the evaluations that were made."""

    ABLATION_TABLES = ("evaluation_examples",)
    OPTIONAL_ABLATIONS = True


def config_with(comparison, **study):
    config = toy_config(**study)
    config.comparisons[comparison.name] = comparison
    return config


def names(keys):
    return {key.to_user_string() for key in keys}


def test_a_kind_needs_what_it_reads_of_a_study_and_what_is_upstream(tmp_path):
    nothing = Store(tmp_path)
    needed = study_targets(config_with(FRONT), FRONT, nothing)
    assert list(needed) == [STUDY] and names(needed[STUDY]) == set(assets_by_name(toy_config()))
    analyses = Analyses(name="page", kind="analyses", studies=(STUDY,))
    found = names(study_targets(config_with(analyses), analyses, nothing)[STUDY])
    assert {"models/tiny", f"{STUDY}/baseline_teacher", f"{STUDY}/uncertainty_analysis"} <= found
    assert not [name for name in found if name.endswith(("student", "evaluation", "ablation_report"))]


def test_inputs_are_named_by_study_and_drawn_from_the_report_where_it_is_read():
    page = assets_by_name(config_with(FRONT))["comparisons/page"]
    assert {item.name for item in page.inputs} == {
        f"{STUDY}/ablation_report",
        f"{STUDY}/evaluation_examples/mle",
        f"{STUDY}/evaluation_examples/top",
    }
    assert page.deps == ((STUDY, "ablation_report"),) and len(page.reads) == 3 and page.follows_inputs
    assert places_of(page.name) == page.outputs
    assert not assets_by_name(config_with(FRONT, enabled=False))["comparisons/page"].follows_inputs
    optional = WhatExists(name="page", kind="what", studies=(STUDY,))
    page = assets_by_name(config_with(optional))["comparisons/page"]
    assert page.optional_reads == set(page.reads) == set(page.deps)


def test_dagster_has_a_job_and_a_sensor_for_a_comparison(tmp_path):
    enabled, disabled = (Toy(tmp_path).defs(config_with(FRONT, enabled=enabled)) for enabled in (True, False))
    assert {STUDY, "comparisons__page"} <= {job.name for job in enabled.resolve_all_job_defs()}
    assert "comparisons__page__automation" in {sensor.name for sensor in enabled.sensors}
    assert "comparisons__page__automation" not in {sensor.name for sensor in disabled.sensors}


def test_a_comparison_is_shown_with_its_studies_or_if_it_was_made(made_study, tmp_path):
    config = config_with(FRONT, enabled=False)
    empty = made_study.copy(tmp_path / "toy").store
    assert shown_comparisons(config, empty, {}) == ["page"]  # The store holds the study.
    nothing = Store(tmp_path / "nothing")
    assert shown_comparisons(config, nothing, {}) == [] and not shown_config(config, nothing, {}).comparisons
    assert shown_comparisons(config, nothing, {"TOKENUQ_STUDIES": STUDY}) == ["page"]
    # Alone, it brings its studies.
    assert list(config_of(config, [], comparisons=["page"]).studies) == [STUDY]
    assert not config_of(config, [STUDY]).comparisons
    assert reason_of("comparisons/gone", []) == "the configuration has no comparison gone"


@pytest.fixture
def toy(made_study, tmp_path):
    return made_study.copy(tmp_path / "toy")


def made_by_runs(instance):
    """What each run has made, the first run first."""
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    return [
        {
            event.dagster_event.asset_key.to_user_string()
            for event in instance.all_logs(record.dagster_run.run_id, of_type=kind)
        }
        for record in reversed(instance.get_run_records())
    ]


def run_command(toy, config, monkeypatch):
    """`tokenuq run --comparison page`; return the exit code, and what each run so far has made."""

    @contextlib.contextmanager
    def project(*studies, config, comparisons=()):
        with toy.instance() as instance:
            part = config_of(config, studies, comparisons=comparisons)
            yield Project(config, toy.defs(part), toy.store, instance)

    monkeypatch.setenv("TOKENUQ_HOME", str(toy.store.home))
    monkeypatch.setattr(run_comparison, "configuration", lambda: config)
    monkeypatch.setattr(run_comparison, "project", project)
    monkeypatch.setattr(run_comparison, "print_comparison", lambda *_: None)
    options = argparse.Namespace(comparison="page", ablation=None, ignore_disk_space=True, plain=True, json=False)
    code = run_comparison.run_comparison(options)
    with toy.instance() as instance:
        return code, made_by_runs(instance)


@pytest.mark.slow
def test_a_run_makes_what_is_stale_of_the_studies_and_then_the_page(toy, monkeypatch):
    code, runs = run_command(toy, config_with(FRONT), monkeypatch)
    assert (code, runs[1:]) == (0, [{"comparisons/page"}])
    _, changed = run_command(toy, config_with(FRONT, quantile=0.5), monkeypatch)
    first = changed[2]
    assert f"{STUDY}/top/student" in first and f"{STUDY}/mle/student" not in first
    assert changed[-1] == {"comparisons/page"} and not any("comparisons/page" in run for run in changed[2:-1])
    with pytest.raises(InputError, match="no comparison 'other'; there are page"):
        run_comparison.run_comparison(argparse.Namespace(comparison="other", ablation=None, plain=True, json=False))
    with pytest.raises(InputError, match="--ablation goes with --study"):
        run_comparison.run_comparison(argparse.Namespace(comparison="page", ablation=[["mle"]]))


def page_runner(toy, config, instance):
    return StudyRunner(
        toy.defs(config), config, "comparison page", instance, toy.store, CONSOLE, job=comparison_job("page")
    )


def manifest_of(toy, asset):
    return toy.store.home / manifest_place(asset)


@pytest.mark.slow
def test_a_missing_optional_table_is_left_out_until_it_was_made(toy, capfd):
    config = config_with(WhatExists(name="page", kind="what", studies=(STUDY,)))
    manifest = manifest_of(toy, f"{STUDY}/top/evaluation")
    kept = manifest.read_bytes()
    manifest.unlink()
    with toy.instance() as instance:
        runner = page_runner(toy, config, instance)
        assert make(runner, {comparison_key("page")}) == 0
        made = toy.store.read_manifest("comparisons/page")
        assert set(made.input_data_versions) == {f"{STUDY}/mle/evaluation"}
        assert made.metrics["inputs"] == f"{STUDY}/evaluation_examples/mle"
        # Made without it, the page is fresh, also by Dagster's records.
        found = runner.staleness({comparison_key("page")})
        assert not found and not found.unrecorded
        manifest.write_bytes(kept)
        found = page_runner(toy, config, instance).staleness({comparison_key("page")})
        assert found.reasons == {comparison_key("page"): f"{STUDY}/top/evaluation was made"}
        assert make(page_runner(toy, config, instance), {comparison_key("page")}) == 0
    assert len(toy.store.read_manifest("comparisons/page").input_data_versions) == 2
    assert "comparison page: results in" in capfd.readouterr().out


@pytest.mark.slow
def test_a_missing_table_that_is_needed_fails_the_page_with_its_name(toy, capfd):
    manifest_of(toy, f"{STUDY}/top/evaluation").unlink()
    config = config_with(FRONT)
    with toy.instance() as instance:
        assert make(page_runner(toy, config, instance), {comparison_key("page")}) == 1
    assert f"missing inputs: {STUDY}/top/evaluation; materialise them first" in capfd.readouterr().out


@pytest.mark.slow
def test_status_has_a_line_for_the_comparison_and_names_what_is_stale(toy, monkeypatch):
    for name, folder in (("TOKENUQ_HOME", "store"), ("DAGSTER_HOME", "dagster_home")):
        monkeypatch.setenv(name, str(toy.folder / folder))
    config = config_with(FRONT)
    asked = status._asked(argparse.Namespace(all=False, study=None, comparison=None, export=None), config, toy.store)
    assert asked == [STUDY, "comparisons/page"]
    (study, page), rows = status.study_statuses(config, asked, toy.store)
    assert (study.state, page.state) == ("fresh", "not made")
    assert (page.assets, rows) == (18, [{"asset": "comparisons/page", "state": "missing", "reason": "was never made"}])
    with toy.instance() as instance:
        make(page_runner(toy, config, instance), {comparison_key("page")})
    config = config_with(FRONT.model_copy(update={"confidence": 0.9}))
    (page,), rows = status.study_statuses(config, ["comparisons/page"], toy.store)
    assert page.state == "stale" and [row["asset"] for row in rows] == ["comparisons/page"]
    assert "confidence" in rows[0]["reason"]
