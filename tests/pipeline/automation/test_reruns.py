"""Schedules, sensors and automation, one tick at a time on a temporary instance."""

import contextvars
import json
import os

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, Toy, config_with
from tokenuq_ml.config import StudySpec
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.automation import reruns, schedules
from tokenuq_pipeline.automation.reruns import RERUN_TAG, WAVE_TAG
from tokenuq_pipeline.runtime.dagster_internals import run_job
from tokenuq_pipeline.runtime.instance import PROCESS_TAG

pytestmark = pytest.mark.slow


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path / "toy")


class Daemon:
    """The toy's definitions and instance; carries run requests out as the daemon would."""

    def __init__(self, toy, config, instance):
        self.toy, self.config, self.instance = toy, config, instance
        self.defs, self.cursors, self.observed = toy.defs(config), {}, []
        # Dagster would ask the instance that built definitions last, which may be gone. A context of its own forgets
        # it for good: a generator of an earlier test that is collected meanwhile would bring it back.
        self.repository = contextvars.Context().run(self.defs.get_repository_def)

    def schedule(self, study=STUDY):
        context = dg.build_schedule_context(instance=self.instance, repository_def=self.repository)
        definition = self.repository.get_schedule_def(f"{study}__rerun")
        return definition.evaluate_tick(context)

    def sensor(self, name):
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursors.get(name), repository_def=self.repository, sensor_name=name
        )
        tick = self.repository.get_sensor_def(name).evaluate_tick(context)
        self.cursors[name] = tick.cursor
        for event in tick.asset_events:
            self.instance.report_runless_asset_event(event)
        return tick

    def carry_out(self, request):
        """Runs what was asked for; the names of what was made."""
        job = self.defs.resolve_job_def(request.job_name)
        assets, checks = request.asset_selection or (), request.asset_check_keys
        if checks is None:
            graph = job.asset_layer.asset_graph
            checks = [key for key in graph.asset_check_keys if key.asset_key in assets]
        subset = job.get_subset(asset_selection=set(assets), asset_check_selection=set(checks))
        run = self.instance.create_run_for_job(
            subset, run_config=request.run_config, tags=dict(request.tags), asset_selection=frozenset(assets) or None
        )
        events = run_job(subset, run, self.instance)
        made = [event for event in events if event.event_type_value == "ASSET_MATERIALIZATION"]
        return {event.asset_key.to_user_string() for event in made}

    def until_fresh(self, request):
        """The waves of a rerun that begins with `request`."""
        waves = [self.carry_out(request)]
        while True:
            tick = self.sensor("next_wave")
            if not tick.run_requests:
                return waves, tick.skip_message
            waves.append(self.carry_out(tick.run_requests[0]))
            assert len(waves) < 10


@pytest.fixture
def daemon(toy, tmp_path):
    """Nothing is materialised."""
    with toy.instance() as instance:
        yield Daemon(toy, config_with(tmp_path), instance)


@pytest.fixture
def data_file(made_study_with_file):
    """The file of the dataset `extra` of the materialised study; a test may change it."""
    path = made_study_with_file.folder.parent / "extra.jsonl"
    before = path.read_text()
    yield path
    path.write_text(before)


@pytest.fixture
def fresh_daemon(made_study_with_file, data_file, tmp_path):
    """The study is materialised, and everything is fresh."""
    toy = made_study_with_file.copy(tmp_path / "made")
    with toy.instance() as instance:
        yield Daemon(toy, config_with(data_file.parent), instance)


def test_a_schedule_makes_the_study_and_then_has_nothing_to_do(daemon):
    (request,) = daemon.schedule().run_requests
    assert request.tags["study"] == STUDY and request.tags[RERUN_TAG] == "schedule" and request.tags[WAVE_TAG] == "1"
    waves, said = daemon.until_fresh(request)
    assert len(set().union(*waves)) == 17 and said == "study: everything is fresh after 1 wave"
    tick = daemon.schedule()
    assert not tick.run_requests and tick.skip_message == "study: nothing is stale"
    assert daemon.sensor("next_wave").skip_message == "no rerun is in progress"


def test_a_schedule_reruns_what_is_stale_in_waves(fresh_daemon, data_file):
    edited = Daemon(fresh_daemon.toy, config_with(data_file.parent, quantile=0.5), fresh_daemon.instance)
    edited.cursors = fresh_daemon.cursors
    waves, said = edited.until_fresh(edited.schedule().run_requests[0])
    assert waves == [
        {"study/top/student"},
        {"study/top/evaluation", "study/top/curriculum", "study/ablation_report"},
    ]
    assert said == "study: everything is fresh after 2 waves"


def test_a_schedule_with_a_new_dagster_home_adopts_the_store_and_only_checks_it(made_study_with_file, tmp_path):
    toy = made_study_with_file.copy(tmp_path / "toy")
    (toy.folder / "dagster_home").rename(tmp_path / "lost")
    with toy.instance() as instance:
        daemon = Daemon(toy, config_with(made_study_with_file.folder.parent), instance)
        (request,) = daemon.schedule().run_requests
        assert not request.asset_selection and request.asset_check_keys
        assert daemon.until_fresh(request) == ([set()], "study: everything is fresh after 1 wave")
        assert daemon.schedule().skip_message == "study: nothing is stale"


def test_a_schedule_skips_a_study_with_a_run_in_progress(daemon):
    job = daemon.defs.resolve_job_def(STUDY)
    run = daemon.instance.create_run_for_job(job, tags={"study": STUDY}, status=dg.DagsterRunStatus.STARTED)
    tick = daemon.schedule()
    assert not tick.run_requests and f"run {run.run_id[:8]} is in progress" in tick.skip_message


def test_a_failed_run_ends_the_waves_until_the_next_tick(daemon, monkeypatch):
    request = daemon.schedule().run_requests[0]
    monkeypatch.setenv("FAKE_STAGE", json.dumps({"spoil": "token_losses"}))
    daemon.carry_out(request)
    tick = daemon.sensor("next_wave")
    assert not tick.run_requests and "did not succeed; its rerun ends here" in tick.skip_message
    assert daemon.sensor("next_wave").skip_message == "no rerun is in progress"
    # The next tick of the schedule takes it up: first the check that failed, alone.
    monkeypatch.delenv("FAKE_STAGE")
    request = daemon.schedule().run_requests[0]
    assert not request.asset_selection and {key.name for key in request.asset_check_keys} >= {
        "one_row_per_response_token"
    }


def test_the_next_wave_waits_for_other_runs_and_is_requested_once(fresh_daemon, data_file):
    edited = Daemon(fresh_daemon.toy, config_with(data_file.parent, quantile=0.5), fresh_daemon.instance)
    edited.cursors = fresh_daemon.cursors
    edited.carry_out(edited.schedule().run_requests[0])
    job = fresh_daemon.defs.resolve_job_def(STUDY)
    other = fresh_daemon.instance.create_run_for_job(
        job, tags={"study": STUDY, PROCESS_TAG: f"{os.getpid()}-0"}, status=dg.DagsterRunStatus.STARTED
    )
    assert edited.sensor("next_wave").skip_message == f"study: waits for run {other.run_id[:8]}"
    fresh_daemon.instance.report_run_canceled(other)
    (request,) = edited.sensor("next_wave").run_requests
    assert request.tags[WAVE_TAG] == "2" and request.run_key.startswith("study-after-")
    assert not edited.sensor("next_wave").run_requests


def test_a_changed_data_file_is_requested_once_when_it_is_complete(fresh_daemon, data_file):
    assert "no longer change" in fresh_daemon.sensor("data_files").skip_message
    assert fresh_daemon.sensor("data_files").skip_message == "no data file has changed"
    with open(data_file, "a") as file:
        file.write('{"rows": 2')
    assert fresh_daemon.sensor("data_files").skip_message == "extra: waits until its files no longer change"
    assert fresh_daemon.sensor("data_files").skip_message == "extra: extra.jsonl does not end with a complete line"
    with open(data_file, "a") as file:
        file.write("}\n")
    assert not fresh_daemon.sensor("data_files").run_requests
    (request,) = fresh_daemon.sensor("data_files").run_requests
    assert request.tags[RERUN_TAG] == "data file of extra" and request.run_key.startswith("extra-")
    assert not fresh_daemon.sensor("data_files").run_requests
    waves, said = fresh_daemon.until_fresh(request)
    assert waves == [{"datasets/extra"}] and said == "study: everything is fresh after 1 wave"
    data_file.touch()
    assert not fresh_daemon.sensor("data_files").run_requests and not fresh_daemon.sensor("data_files").run_requests


def test_a_changed_file_that_another_run_has_read_is_not_requested_again(fresh_daemon, data_file):
    fresh_daemon.sensor("data_files")
    data_file.write_text('{"rows": 2}\n')
    fresh_daemon.sensor("data_files")
    (request,) = fresh_daemon.schedule().run_requests
    job = fresh_daemon.defs.resolve_job_def(STUDY)
    run = fresh_daemon.instance.create_run_for_job(job, tags={"study": STUDY}, status=dg.DagsterRunStatus.STARTED)
    assert fresh_daemon.sensor("data_files").skip_message == f"extra: waits for run {run.run_id[:8]}"
    fresh_daemon.instance.report_run_canceled(run)
    assert fresh_daemon.carry_out(request) == {"datasets/extra"}
    assert fresh_daemon.sensor("data_files").skip_message == "no data file has changed"


def test_going_back_to_earlier_content_requests_it_again(daemon, tmp_path):
    path, keys = tmp_path / "extra.jsonl", []
    for text in ("1\n", "2\n", "1\n"):
        path.write_text(text)
        daemon.sensor("data_files")
        keys += [request.run_key for request in daemon.sensor("data_files").run_requests]
    assert len(set(keys)) == 3


def test_a_missing_data_file_is_requested_once_it_exists(daemon, tmp_path):
    path = tmp_path / "extra.jsonl"
    path.unlink()
    assert not daemon.sensor("data_files").run_requests
    assert "extra.jsonl: no such file; correct `path:` of extra" in daemon.sensor("data_files").skip_message
    path.write_text('{"rows": 1}\n')
    daemon.sensor("data_files")
    assert [key.path for key in daemon.sensor("data_files").run_requests[0].asset_selection] == [["datasets", "extra"]]


def test_a_disabled_study_has_a_job_but_no_automation(toy, tmp_path):
    config = config_with(tmp_path)
    off = config.studies[STUDY].model_copy(update={"enabled": False, "name": "off"})
    config.studies["off"] = StudySpec(**off.model_dump())
    defs = toy.defs(config)
    assert [schedule.name for schedule in defs.schedules] == ["study__rerun", "verify__weekly"]
    assert {sensor.name for sensor in defs.sensors} == {"data_files", "next_wave", "study__automation"}
    assert {job.name for job in defs.jobs} == {STUDY, "off", "verify"}
    graph = defs.resolve_asset_graph()
    assert not [
        key for key in graph.get_all_asset_keys() if key.path[0] == "off" and graph.get(key).automation_condition
    ]


def test_cheap_assets_are_requested_when_their_inputs_change(fresh_daemon):
    graph = fresh_daemon.defs.resolve_asset_graph()
    automated = {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).automation_condition}
    assert automated == {"study/uncertainty_analysis", "study/ablation_report"}
    first = dg.evaluate_automation_conditions(fresh_daemon.defs, fresh_daemon.instance)
    assert first.total_requested == 0
    job = fresh_daemon.defs.resolve_job_def(STUDY)
    forced = [dg.AssetKey([STUDY, "mle", "evaluation"])]
    os.environ["FAKE_STAGE"] = json.dumps({"spoil": "evaluation"})
    try:
        assert job.execute_in_process(instance=fresh_daemon.instance, asset_selection=forced).success
    finally:
        del os.environ["FAKE_STAGE"]
    second = dg.evaluate_automation_conditions(fresh_daemon.defs, fresh_daemon.instance, cursor=first.cursor)
    asked = {key.to_user_string() for key in automated_keys(second)}
    assert asked == {"study/ablation_report"}
    third = dg.evaluate_automation_conditions(fresh_daemon.defs, fresh_daemon.instance, cursor=second.cursor)
    assert third.total_requested == 0


def automated_keys(result):
    return [evaluation.key for evaluation in result.results if not evaluation.true_subset.is_empty]


def test_schedules_and_sensors_are_off_until_the_variable_switches_them_on(toy, tmp_path, monkeypatch):
    def statuses():
        defs = toy.defs(config_with(tmp_path))
        return {one.default_status.value for one in (*defs.schedules, *defs.sensors)}

    assert statuses() == {"STOPPED"}
    monkeypatch.setenv("TOKENUQ_AUTOMATE", "1")
    assert statuses() == {"RUNNING"}


def test_the_environment_sets_the_cron_expression():
    assert schedules.cron({}) == "0 3 * * 1"
    assert schedules.cron({"TOKENUQ_SCHEDULE": "@daily"}) == "@daily"
    with pytest.raises(InputError, match="TOKENUQ_SCHEDULE: 'soon' is not a cron expression"):
        schedules.cron({"TOKENUQ_SCHEDULE": "soon"})
    with pytest.raises(InputError, match="TOKENUQ_AUTOMATE: must be 0 or 1, is 'yes'"):
        reruns.starts_running({"TOKENUQ_AUTOMATE": "yes"})
