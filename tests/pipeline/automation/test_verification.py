"""The job `verify`: one check per asset, red where a file is damaged, and in nobody's way."""

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.integrity_checks import NAME
from tokenuq_pipeline.automation.staleness import Records, find_wave, study_keys
from tokenuq_pipeline.runtime.dagster_internals import run_job

pytestmark = pytest.mark.slow


@pytest.fixture
def toy(made_study, tmp_path):
    return made_study.copy(tmp_path / "toy")


def evaluations(toy, instance):
    """Asset -> the outcome of its check, as the scheduled run gives it."""
    defs = toy.defs()
    schedule = defs.get_repository_def().get_schedule_def("verify__weekly")
    (request,) = schedule.evaluate_tick(dg.build_schedule_context(instance=instance)).run_requests
    assert not request.asset_selection
    job = defs.resolve_job_def("verify").get_subset(asset_check_selection=set(request.asset_check_keys))
    run = instance.create_run_for_job(job, run_config=request.run_config)
    events = list(run_job(job, run, instance))
    assert instance.get_run_by_id(run.run_id).is_success
    assert len([event for event in events if event.event_type_value == "STEP_START"]) == 1
    found = [
        event.asset_check_evaluation_data for event in events if event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    return {check.asset_key.to_user_string(): check for check in found}


def test_every_asset_has_a_check_that_no_run_of_a_study_evaluates(toy):
    defs = toy.defs()
    graph, names = defs.resolve_asset_graph(), set(assets_by_name(toy_config()))
    checks = {key for key in graph.asset_check_keys if key.name == NAME}
    assert {key.asset_key.to_user_string() for key in checks} == names
    assert not any(graph.get_check_spec(key).blocking for key in checks)
    assert not checks & set(defs.resolve_job_def(STUDY).asset_layer.asset_graph.asset_check_keys)
    assert set(defs.resolve_job_def("verify").asset_layer.asset_graph.asset_check_keys) == checks


def test_a_damaged_asset_gets_a_failed_check_and_everything_else_goes_on(toy):
    place = "student/study=study/ablation=top/adapter/adapter_model.safetensors"
    weights = toy.store.path(place)
    weights.write_bytes(b"x" * weights.stat().st_size)
    toy.store.path("models/tiny/more").touch()
    with toy.instance() as instance:
        found = evaluations(toy, instance)
        assert set(found) == set(toy.store.assets()) == set(assets_by_name(toy_config()))
        failed = {name: check for name, check in found.items() if not check.passed}
        assert set(failed) == {"study/top/student", "models/tiny"}
        check = failed["study/top/student"]
        assert check.description.startswith(f"{place}: its SHA-256 begins with")
        assert check.description.endswith("`tokenuq verify --forget`, then `tokenuq run`, makes it again")
        assert check.severity == dg.AssetCheckSeverity.ERROR and check.metadata["damaged"].value == 1
        assert "models/tiny/more: does not belong to the asset" in failed["models/tiny"].description
        # No check is pending because of it, before and after.
        records = Records.of(toy.defs().resolve_asset_graph(), toy_config(), instance, toy.store)
        assert find_wave(records, study_keys(records.assets, STUDY)) is None


def test_a_damaged_manifest_fails_the_check(toy):
    path = toy.store.home / ".manifests/models/tiny.json"
    path.write_bytes(b"\xff")
    with toy.instance() as instance:
        (check,) = (check for check in evaluations(toy, instance).values() if not check.passed)
    assert f"{path}: is not UTF-8" in check.description


def test_what_was_never_made_is_not_asked_for(tmp_path):
    toy = Toy(tmp_path)
    schedule = toy.defs().get_repository_def().get_schedule_def("verify__weekly")
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED and schedule.cron_schedule == "0 5 * * 0"
    with toy.instance() as instance:
        tick = schedule.evaluate_tick(dg.build_schedule_context(instance=instance))
    assert not tick.run_requests and tick.skip_message == "nothing is made"


def test_the_environment_says_when(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENUQ_AUTOMATE", "1")
    monkeypatch.setenv("TOKENUQ_VERIFY_SCHEDULE", "0 1 1 * *")
    schedule = Toy(tmp_path).defs().get_repository_def().get_schedule_def("verify__weekly")
    assert schedule.cron_schedule == "0 1 1 * *" and schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    monkeypatch.setenv("TOKENUQ_VERIFY_SCHEDULE", "weekly")
    with pytest.raises(InputError, match="TOKENUQ_VERIFY_SCHEDULE: 'weekly' is not a cron expression"):
        Toy(tmp_path).defs()
