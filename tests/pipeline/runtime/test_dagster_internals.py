"""Each name that the pipeline takes from Dagster's private modules exists and does what it is used for.

After an upgrade of Dagster, what fails here is to be changed in `tokenuq_pipeline/runtime/dagster_internals.py`.
"""

import logging
import os
import subprocess

import dagster as dg
import pytest

from tests.support.paths import ROOT
from tokenuq_pipeline.runtime import dagster_internals as internals

UP, DOWN = dg.AssetKey("up"), dg.AssetKey("down")
CHECK, OTHER = dg.AssetCheckKey(DOWN, "is_even"), dg.AssetCheckKey(DOWN, "is_positive")


class Graph:
    """Two assets with a check on the second; what they do is set by attributes."""

    def __init__(self, instance):
        self.instance, self.number, self.error = instance, 2, None
        self.checks_asked = []

        @dg.asset(code_version="1")
        def up():
            if self.error:
                raise self.error
            return dg.MaterializeResult(data_version=dg.DataVersion(str(self.number)))

        @dg.multi_asset(
            specs=[dg.AssetSpec(DOWN, deps=[UP], code_version="1", skippable=True)],
            check_specs=[dg.AssetCheckSpec(key.name, asset=DOWN, blocking=True) for key in (CHECK, OTHER)],
            can_subset=True,
        )
        def down(context):
            self.checks_asked.append(internals.selected_checks(context))
            if DOWN in context.selected_asset_keys:
                yield dg.MaterializeResult(asset_key=DOWN)
            for key, passed in ((CHECK, self.number % 2 == 0), (OTHER, self.number > 0)):
                if key in internals.selected_checks(context):
                    yield dg.AssetCheckResult(asset_key=DOWN, check_name=key.name, passed=passed)

        job = dg.define_asset_job("job")
        self.defs = dg.Definitions(assets=[up, down], jobs=[job], executor=dg.in_process_executor)
        self.graph = self.defs.resolve_asset_graph()

    def run(self, *keys, checks=()):
        """Run the job for some assets, by default all; return the run and its events."""
        job = self.defs.resolve_job_def("job")
        if keys or checks:
            job = job.get_subset(asset_selection=set(keys), asset_check_selection=set(checks))
        run = self.instance.create_run_for_job(job, asset_selection=frozenset(keys) or None)
        events = list(internals.run_job(job, run, self.instance))
        return self.instance.get_run_by_id(run.run_id), events


@pytest.fixture
def graph():
    internals.forget_definitions_storage()
    with dg.DagsterInstance.ephemeral() as instance:
        yield Graph(instance)


def test_no_other_file_imports_private_modules_of_dagster():
    text = subprocess.run(
        ["grep", "-rnE", r"(from|import) dagster\._", "tokenuq_pipeline", "tests", "--include=*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert {line.partition(":")[0] for line in text.splitlines()} == {"tokenuq_pipeline/runtime/dagster_internals.py"}


def test_every_name_is_there():
    assert all(hasattr(internals, name) for name in internals.__all__)


def test_run_job_executes_in_this_process_and_yields_events(graph):
    run, events = graph.run()
    assert run.is_success
    kinds = [event.event_type for event in events]
    assert kinds.count(dg.DagsterEventType.ASSET_MATERIALIZATION) == 2 and kinds[-1] == dg.DagsterEventType.RUN_SUCCESS
    pids = [pid for event in events if (pid := internals.process_of_event(event)) is not None]
    assert pids and set(pids) == {os.getpid()}


def test_process_of_event_reads_what_dagster_records(graph):
    job = graph.defs.resolve_job_def("job")
    run = graph.instance.create_run_for_job(job)
    graph.instance.report_engine_event("Executing", run, internals.EngineEventData.in_process(4711))
    graph.instance.report_engine_event("No process", run)
    entries = graph.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    assert {internals.process_of_event(entry.dagster_event) for entry in entries} == {4711, None}


def test_was_terminated_tells_an_interrupt_from_a_bug(graph):
    graph.error = RuntimeError("a bug")
    run, events = graph.run()
    (failure,) = (event for event in events if event.event_type == dg.DagsterEventType.RUN_FAILURE)
    assert not run.is_success and not internals.was_terminated(failure)
    # A step failed: the step's own event says why.
    assert internals.exception_of_run(failure) is None
    graph.error = dg.DagsterExecutionInterruptedError()
    run, events = graph.run()
    (failure,) = (event for event in events if event.event_type == dg.DagsterEventType.RUN_FAILURE)
    assert internals.was_terminated(failure)


def test_statuses_in_progress_and_not_finished():
    for status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING):
        assert status in internals.IN_PROGRESS_RUN_STATUSES and status in internals.NOT_FINISHED_STATUSES
    assert dg.DagsterRunStatus.QUEUED in internals.NOT_FINISHED_STATUSES
    for status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
        assert status not in internals.IN_PROGRESS_RUN_STATUSES and status not in internals.NOT_FINISHED_STATUSES


def test_stale_status(graph):
    resolver = internals.stale_status_resolver(graph.instance, graph.graph)
    assert resolver.get_status(UP) == internals.StaleStatus.MISSING
    graph.run()
    resolver = internals.stale_status_resolver(graph.instance, graph.graph)
    assert resolver.get_status(DOWN) == internals.StaleStatus.FRESH
    assert resolver.get_current_data_version(UP).value == "2"
    graph.number = 3
    graph.run(UP)
    resolver = internals.stale_status_resolver(graph.instance, graph.graph)
    assert resolver.get_status(DOWN) == internals.StaleStatus.STALE


def test_input_data_version_tag_is_on_materializations(graph):
    graph.run()
    tags = graph.instance.get_latest_materialization_event(DOWN).asset_materialization.tags
    assert tags[internals.input_data_version_tag(UP)] == "2"
    up = graph.instance.get_latest_materialization_event(UP).asset_materialization
    assert up.tags[internals.DATA_VERSION_TAG] == "2"


def test_passed_on_latest(graph):
    def passed():
        return internals.passed_on_latest(graph.instance, [CHECK])[CHECK]

    assert not passed()
    graph.run()
    assert passed()
    graph.instance.report_runless_asset_event(dg.AssetMaterialization(DOWN))
    assert not passed(), "the check did not run on the latest materialization"
    graph.number = 3
    graph.run(UP, DOWN, checks=[CHECK])
    assert not passed()


def test_a_reported_materialisation_with_version_tags_is_fresh_as_that_of_a_step_is(graph):
    for key, inputs in ((UP, ()), (DOWN, (UP,))):
        code_version = graph.graph.get(key).code_version or "none"
        recorded = {one: internals.last_recorded(graph.instance, one) for one in inputs}
        tags = internals.version_tags("2", code_version, recorded)
        graph.instance.report_runless_asset_event(dg.AssetMaterialization(key, tags=tags))
    resolver = internals.stale_status_resolver(graph.instance, graph.graph)
    assert resolver.get_status(UP) == resolver.get_status(DOWN) == internals.StaleStatus.FRESH
    assert resolver.get_current_data_version(DOWN).value == "2"
    graph.run()
    step = graph.instance.get_latest_materialization_event(DOWN).asset_materialization.tags
    assert step.keys() - tags.keys() == set()


def test_a_check_that_passed_outside_a_run_counts_for_the_content_that_it_saw(graph):
    def passed():
        return internals.passed_on_latest(graph.instance, [CHECK])[CHECK]

    def report(version):
        tags = internals.version_tags(version, "1", {})
        graph.instance.report_runless_asset_event(dg.AssetMaterialization(DOWN, tags=tags))

    for version in ("a", "b"):
        report(version)
        assert not passed()
        target, outcome = internals.last_recorded(graph.instance, DOWN), dg.AssetCheckResult(passed=True)
        graph.instance.report_runless_asset_event(internals.check_evaluation(CHECK, outcome, True, target))
        assert passed()
        report(version)
        assert passed()


def test_nothing_is_recorded_of_an_asset_that_was_never_made(graph):
    assert internals.last_recorded(graph.instance, UP).storage_id is None


def test_selected_checks_are_those_that_the_run_asks_for(graph):
    graph.run()
    graph.run(checks=[OTHER])
    assert graph.checks_asked == [{CHECK, OTHER}, {OTHER}]


def test_cron_expressions():
    assert internals.is_valid_cron_schedule("0 3 * * 1") and internals.is_valid_cron_schedule("@daily")
    assert not internals.is_valid_cron_schedule("soon")


def test_definitions_can_be_built_after_their_instance_was_closed():
    for _ in range(2):
        internals.forget_definitions_storage()
        with dg.DagsterInstance.ephemeral() as instance:
            assert Graph(instance).run()[0].is_success


def test_a_run_whose_configuration_names_no_logger_logs_by_the_default(monkeypatch):
    module = internals.context_creation_job
    monkeypatch.setattr(module, "default_system_loggers", module.default_system_loggers)
    records = []

    class Handler(logging.Handler):
        def emit(self, record):
            records.append(record)

    @dg.logger({})
    def mine(context):
        logger = logging.Logger("mine")
        logger.addHandler(Handler())
        return logger

    internals.log_by_default(mine)

    @dg.asset
    def one(context):
        context.log.info("said by the asset")

    dg.Definitions([one]).resolve_implicit_global_asset_job_def().execute_in_process()
    assert any("said by the asset" in record.getMessage() for record in records)
