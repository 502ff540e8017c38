"""Names of Dagster that are not part of its public API, and what the pipeline uses them for.

Every import of `dagster._...` is in this file, so that an upgrade of Dagster touches no other.
`tests/pipeline/runtime/test_dagster_internals.py` tests each name for its use here.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import yaml
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    NULL_EVENT_POINTER,
    CachingStaleStatusResolver,
    StaleStatus,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.errors import DagsterSubprocessError
from dagster._core.events import EngineEventData, RunFailureReason
from dagster._core.execution import context_creation_job
from dagster._core.execution.api import execute_run_iterator
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig
from dagster._core.executor.child_process_executor import ChildProcessCrashException
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES, NOT_FINISHED_STATUSES
from dagster._core.storage.defs_state.base import _current_storage
from dagster._core.storage.event_log.base import AssetRecord
from dagster._utils.schedules import is_valid_cron_schedule

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = [
    "DATA_VERSION_TAG",
    "IN_PROGRESS_RUN_STATUSES",
    "NOT_FINISHED_STATUSES",
    "REPOSITORY_TAG",
    "STEP_CRASHED",
    "WAITS_FOR_SLOT",
    "AssetGraph",
    "CachingStaleStatusResolver",
    "EngineEventData",
    "ExecutionPlan",
    "PlanOrchestrationContext",
    "RetryMode",
    "ReconstructableJob",
    "Recorded",
    "StaleStatus",
    "StepDependencyConfig",
    "check_evaluation",
    "code_servers",
    "exception_of_run",
    "forget_definitions_storage",
    "input_data_version_tag",
    "is_valid_cron_schedule",
    "last_recorded",
    "log_by_default",
    "passed_on_latest",
    "process_of_event",
    "run_job",
    "selected_checks",
    "stale_status_resolver",
    "version_tags",
    "was_terminated",
    "web_app",
]

REPOSITORY_TAG = ".dagster/repository"
"""The UI lists a run under a job by this tag: `__repository__@<code location>`."""
WAITS_FOR_SLOT = "Step blocked by limit"
"""The start of the event of a step that waits for a slot of a pool."""
STEP_CRASHED = ChildProcessCrashException.__name__


def run_job(
    job: dg.JobDefinition | ReconstructableJob, run: dg.DagsterRun, instance: dg.DagsterInstance
) -> Iterator[dg.DagsterEvent]:
    """Execute a run and yield its events as they happen; processes of steps build a reconstructable job again."""
    return execute_run_iterator(InMemoryJob(job) if isinstance(job, dg.JobDefinition) else job, run, instance)


def was_terminated(event: dg.DagsterEvent) -> bool:
    """Return whether a `RUN_FAILURE` event was caused by an interrupt of the process."""
    return event.job_failure_data.failure_reason == RunFailureReason.UNEXPECTED_TERMINATION


def exception_of_run(event: dg.DagsterEvent) -> str | None:
    """Return the message of a `RUN_FAILURE` event whose cause lies outside any step."""
    data = event.job_failure_data
    if data.failure_reason != RunFailureReason.RUN_EXCEPTION or data.error is None:
        return None
    if data.error.cls_name != DagsterSubprocessError.__name__:
        return data.error.message.strip()
    # One text for all steps' processes. What has crashed is a failure of its step already.
    found = re.findall(r"^In process \d+: (.*?)\s*(?:^Stack Trace:|\Z)", data.error.message, re.MULTILINE | re.DOTALL)
    return next((reason.strip() for reason in found if STEP_CRASHED not in reason), None)


def process_of_event(event: dg.DagsterEvent) -> int | None:
    """Return the process id that an engine event names."""
    data = event.event_specific_data
    text = data.metadata.get("pid") if isinstance(data, EngineEventData) else None
    return None if text is None else int(str(text.value))


def input_data_version_tag(key: dg.AssetKey) -> str:
    """Return the tag of a materialization that holds the data version of its input `key`."""
    return get_input_data_version_tag(key)


def stale_status_resolver(instance: dg.DagsterInstance, graph: AssetGraph) -> CachingStaleStatusResolver:
    """Return what the UI uses to find stale assets and the causes."""
    context = LoadingContextForTest(instance)
    # All records by one query. The resolver would send one for each asset.
    AssetRecord.blocking_get_many(context, list(graph.get_all_asset_keys()))
    return CachingStaleStatusResolver(instance, graph, context)


@dataclass(frozen=True)
class Recorded:
    """The last materialisation of an asset, or observation of files, that an instance has recorded."""

    data_version: str
    storage_id: int | None = None
    """None: there is no record."""
    run_id: str = ""
    timestamp: float = 0.0


def last_recorded(instance: dg.DagsterInstance, key: dg.AssetKey) -> Recorded:
    """Return what an instance has recorded last of an asset, with Dagster's default version if there is nothing."""
    records = instance.fetch_materializations(key, limit=1).records or instance.fetch_observations(key, limit=1).records
    return _recorded(records[0]) if records else Recorded(DEFAULT_DATA_VERSION.value)


def _recorded(record: dg.EventLogRecord) -> Recorded:
    event = record.asset_materialization or record.event_log_entry.asset_observation
    version = (event.tags or {}).get(DATA_VERSION_TAG) if event else None
    return Recorded(version or DEFAULT_DATA_VERSION.value, record.storage_id, record.run_id, record.timestamp)


def version_tags(data_version: str, code_version: str, inputs: Mapping[dg.AssetKey, Recorded]) -> dict[str, str]:
    """Return the tags of a materialisation from which Dagster finds stale assets, as a step sets them.

    Args:
        data_version: of the asset.
        code_version: that it was made with.
        inputs: what is recorded of each input that an edge is drawn from.
    """
    tags = {DATA_VERSION_TAG: data_version, CODE_VERSION_TAG: code_version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}
    for key, recorded in inputs.items():
        tags[get_input_data_version_tag(key)] = recorded.data_version
        pointer = NULL_EVENT_POINTER if recorded.storage_id is None else str(recorded.storage_id)
        tags[get_input_event_pointer_tag(key)] = pointer
    return tags


def check_evaluation(
    key: dg.AssetCheckKey, outcome: dg.AssetCheckResult, blocking: bool, target: Recorded
) -> dg.AssetCheckEvaluation:
    """Return the event of a check that was evaluated outside a run, on the materialisation `target`."""
    data = AssetCheckEvaluationTargetMaterializationData(
        storage_id=target.storage_id or 0, run_id=target.run_id, timestamp=target.timestamp
    )
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=outcome.passed,
        metadata=outcome.metadata,
        target_materialization_data=data,
        severity=outcome.severity,
        description=outcome.description,
        blocking=blocking,
    )


def passed_on_latest(instance: dg.DagsterInstance, checks: Iterable[dg.AssetCheckKey]) -> dict[dg.AssetCheckKey, bool]:
    """Return for each check whether its last execution passed on the latest materialization of its asset."""
    checks = list(checks)
    executions = instance.event_log_storage.get_latest_asset_check_execution_by_key(checks)
    # By one query, not one for each check.
    entries = [record.asset_entry for record in instance.get_asset_records(list({key.asset_key for key in checks}))]
    latest = {
        entry.asset_key: _recorded(entry.last_materialization_record)
        for entry in entries
        if entry.last_materialization_record is not None
    }
    return {check: _passed(instance, check, executions.get(check), latest.get(check.asset_key)) for check in checks}


def _passed(
    instance: dg.DagsterInstance,
    check: dg.AssetCheckKey,
    execution: AssetCheckExecutionRecord | None,
    latest: Recorded | None,
) -> bool:
    if execution is None or execution.event is None:
        return False
    if execution.status != AssetCheckExecutionRecordStatus.SUCCEEDED:
        return False
    target = execution.event.get_dagster_event().asset_check_evaluation_data.target_materialization_data
    if target is None or latest is None:
        return False
    if latest.run_id:
        return target.run_id == latest.run_id
    # Events outside runs all have the same empty run id. What was checked is the content, and it may be reported twice.
    return target.storage_id == latest.storage_id or latest.data_version == _version_at(instance, check, target)


def _version_at(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, target: AssetCheckEvaluationTargetMaterializationData
) -> str | None:
    """Return the data version of the materialisation that a check looked at."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=check.asset_key, storage_ids=[target.storage_id]), limit=1
    ).records
    event = records[0].asset_materialization if records else None
    return (event.tags or {}).get(DATA_VERSION_TAG) if event else None


def selected_checks(context: dg.AssetExecutionContext) -> set[dg.AssetCheckKey]:
    """Return the checks that a run asks of this step."""
    return set(context.op_execution_context.selected_asset_check_keys)


def log_by_default(logger: dg.LoggerDefinition) -> None:
    """Let runs whose configuration names no logger, such as those that the UI's lineage page starts, log by `logger`.

    A job's configuration can name one, but Dagster gives no place for it to the job behind that page.
    """
    context_creation_job.default_system_loggers = lambda instance: [(logger, {})]


def forget_definitions_storage() -> None:
    """Let definitions that are built next not ask the instance of earlier ones, which a test has closed."""
    _current_storage.set(None)


@contextlib.contextmanager
def code_servers(instance: dg.DagsterInstance, workspace: Path) -> Iterator[Path]:
    """Start a server for each code location, as `dagster dev` does; end them when the block ends.

    Yields:
        A workspace file that refers to the servers, for the webserver and the daemon.
    """
    from dagster._cli.proxy_server_manager import ProxyServerManager
    from dagster._core.workspace.load_target import WorkspaceFileTarget

    target = WorkspaceFileTarget(paths=[str(workspace)])
    with (
        ProxyServerManager(instance, target, code_server_log_level="warning") as manager,
        tempfile.TemporaryDirectory(prefix="tokenuq_ui_") as folder,
    ):
        file = Path(folder) / "workspace.yaml"
        file.write_text(yaml.safe_dump({"load_from": list(manager.get_code_server_specs())}))
        yield file


@contextlib.contextmanager
def web_app(instance: dg.DagsterInstance, workspace: Path, poll_ms: int = 2000) -> Iterator["Starlette"]:
    """Yield the application that `dagster-webserver` serves, over the code locations of a workspace file.

    Args:
        instance: whose runs and assets it shows.
        workspace: the code locations.
        poll_ms: how often an open page asks for news.
    """
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context

    # The limits that `dagster-webserver` sets by default.
    instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3_600, max_overflow=20)
    target = WorkspaceFileTarget(paths=[str(workspace)])
    with WorkspaceProcessContext(instance, workspace_load_target=target, version=dg.__version__) as context:
        yield create_app_from_workspace_process_context(context, live_data_poll_rate=poll_ms)
