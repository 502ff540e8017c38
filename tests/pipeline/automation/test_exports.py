"""Exports as assets: what they read, their check, job and schedule, status, pruning, and the reserved name."""

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.export import ExportSpec
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.export import logits_match
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.recorded_inputs import recorded_inputs
from tokenuq_pipeline.assets.shown_studies import config_of, shown_config, shown_exports
from tokenuq_pipeline.automation.exports import export_job, export_key
from tokenuq_pipeline.automation.study_runner import StudyRunner
from tokenuq_pipeline.commands import status
from tokenuq_pipeline.commands.make_assets import make
from tokenuq_pipeline.runtime.console import CONSOLE
from tokenuq_pipeline.runtime.pruning import reason_of, removable
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import places_of

pytestmark = pytest.mark.slow
CRON = "0 5 * * 1"


def config_with(ablation="top", study=None, **spec):
    config = toy_config(**(study or {}))
    config.exports["model"] = ExportSpec(name="model", study=STUDY, ablation=ablation, **spec)
    return config


def names(paths):
    return {"/".join(path) for path in paths}


def test_an_export_reads_the_student_and_its_evaluation_and_is_drawn_from_them():
    asset = assets_by_name(config_with())["export/model"]
    evaluations = {f"{STUDY}/top/evaluation", f"{STUDY}/reference_evaluation"}
    assert names(asset.deps) == {f"{STUDY}/top/student", *evaluations}
    assert names(asset.reads) == {"models/tiny", f"{STUDY}/tokenized_dataset", *names(asset.deps)}
    assert places_of(asset.name) == asset.outputs == {"model": "export/model"} and asset.group == "export"
    teacher = assets_by_name(config_with("baseline_teacher"))["export/model"]
    assert names(teacher.deps) == {f"{STUDY}/baseline_teacher", f"{STUDY}/reference_evaluation"}


def test_versions_follow_what_is_exported_and_not_when(made_study):
    versions = [
        assets_by_name(config_with(**spec))["export/model"].code_version
        for spec in ({}, {"schedule": CRON}, {"dtype": "float32"}, {"kind": "gguf"}, {"ablation": "mle"})
    ]
    assert versions[0] == versions[1] and len(set(versions)) == 4
    # Another ablation of the study changes nothing.
    fewer = toy_config(ablations=["top"])
    fewer.exports["model"] = ExportSpec(name="model", study=STUDY, ablation="top")
    assert assets_by_name(fewer)["export/model"].code_version == versions[0]


def test_the_stage_gets_what_the_manifest_says_of_the_training(made_study):
    asset = assets_by_name(config_with())["export/model"]
    recorded = recorded_inputs(made_study.store, [asset])
    manifest = made_study.store.read_manifest(f"{STUDY}/top/student")
    origin = recorded["weights"].origin
    assert (origin.data_version, origin.code_version) == (manifest.data_version, manifest.code_version)
    assert origin.metrics == manifest.metrics and origin.provenance["made_at"] == manifest.provenance.made_at
    assert recorded["tokenized_dataset"].origin is None


@pytest.fixture
def toy(made_study, tmp_path):
    return made_study.copy(tmp_path / "toy")


def runner_of(toy, config, instance):
    part = config_of(config, [], exports=["model"])
    return StudyRunner(toy.defs(part), part, "export model", instance, toy.store, CONSOLE, job=export_job("model"))


def test_a_run_publishes_it_its_check_reads_the_manifest_and_status_knows_it(toy, monkeypatch):
    for name, folder in (("TOKENUQ_HOME", "store"), ("DAGSTER_HOME", "dagster_home")):
        monkeypatch.setenv(name, str(toy.folder / folder))
    config = config_with()
    (one,), rows = status.study_statuses(config, ["export/model"], toy.store)
    assert (one.state, [row["asset"] for row in rows]) == ("not made", ["export/model"])
    with toy.instance() as instance:
        assert make(runner_of(toy, config, instance), {export_key("model")}) == 0
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [dg.AssetCheckKey(export_key("model"), "logits_match")]
        )
        assert [one.status.value for one in record.values()] == ["SUCCEEDED"]
    manifest = toy.store.read_manifest("export/model")
    assert set(manifest.input_data_versions) == names(assets_by_name(config)["export/model"].reads)
    (one,), rows = status.study_statuses(config, ["export/model"], toy.store)
    assert (one.state, rows) == ("fresh", [])
    (one,), rows = status.study_statuses(config_with(dtype="float32"), ["export/model"], toy.store)
    assert one.state == "stale" and "export.dtype: auto -> float32" in rows[0]["reason"]
    # Without its entry it is what `tokenuq prune` deletes.
    configured = {asset.name: asset.code_version for asset in assets_by_name(toy_config()).values()}
    (item,) = (one for one in removable(toy.store, configured) if not one.name.startswith(".checkpoints"))
    assert (item.name, item.reason) == ("export/model", "the configuration has no export model")
    assert reason_of("export/gone", []) == "the configuration has no export gone"


def test_a_stage_that_compared_nothing_fails_the_check(toy, monkeypatch):
    monkeypatch.setattr("tests.support.fake_stage.CHECKS", {})
    assert not logits_match(toy.store, "model").passed
    with toy.instance() as instance:
        assert make(runner_of(toy, config_with(), instance), {export_key("model")}) == 1


def evaluate(toy, config):
    """Evaluate the schedule of the export; return the request, or the reason why there is none."""
    with toy.instance() as instance:
        defs = toy.defs(config)
        schedule = next(one for one in defs.schedules if one.name == "export__model__schedule")
        context = dg.build_schedule_context(instance=instance, repository_def=defs.get_repository_def())
        found = schedule.evaluate_tick(context)
        return found.skip_message or found.run_requests[0]


def test_the_schedule_exports_what_has_changed_and_waits_for_the_study(toy):
    config = config_with(schedule=CRON)
    request = evaluate(toy, config)
    assert request.asset_selection == [export_key("model")] and request.tags["export"] == "model"
    with toy.instance() as instance:
        assert make(runner_of(toy, config, instance), {export_key("model")}) == 0
    assert evaluate(toy, config) == "export/model: is up to date"
    waits = evaluate(toy, config_with(schedule=CRON, study={"quantile": 0.5}))
    assert f"waits for {STUDY}/top/" in waits


def test_only_entries_with_a_time_have_a_schedule_and_it_must_be_one(toy):
    def schedules(config):
        return {one.name for one in toy.defs(config).schedules}

    assert "export__model__schedule" in schedules(config_with(schedule=CRON))
    assert "export__model__schedule" not in schedules(config_with())
    assert "export__model" in {job.name for job in toy.defs(config_with()).resolve_all_job_defs()}
    with pytest.raises(InputError, match="exports.yaml: model.schedule: 'daily' is not a cron expression"):
        toy.defs(config_with(schedule="daily"))


def test_it_is_shown_with_its_study_and_the_name_is_reserved(made_study, tmp_path):
    config, nothing = config_with(study={"enabled": False}), Store(tmp_path / "nothing")
    assert shown_exports(config, made_study.store, {}) == ["model"]
    assert shown_exports(config, nothing, {}) == [] and not shown_config(config, nothing, {}).exports
    assert list(config_of(config, [], exports=["model"]).studies) == [STUDY]
    assert not config_of(config, [STUDY]).exports
    with pytest.raises(ValueError, match="a study cannot be named 'export'"):
        StudySpec(name="export", model="tiny", dataset="toy", ablations=["mle"])
