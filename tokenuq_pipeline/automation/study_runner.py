"""Runs a study on a persistent instance, wave by wave, and says on the console how it goes.

The runs are Dagster's own runs of the study's job, with only what is stale selected. Does
not know what is stale (`staleness.py`) or how a stage is run (`assets/stage.py`).
"""

import time
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import RunFailureReason
from dagster._core.execution.api import execute_run_iterator

from tokenuq_ml.config.load import Config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.graph import stage_groups
from tokenuq_pipeline.automation.staleness import (
    NEVER_MADE,
    Key,
    Staleness,
    Wave,
    ancestors,
    find_wave,
    parents_of,
    staleness,
)
from tokenuq_pipeline.runtime.data_files import observe
from tokenuq_pipeline.runtime.instance import ACCELERATOR, PROCESS_TAG
from tokenuq_pipeline.runtime.logs import Console
from tokenuq_pipeline.runtime.processes import process_name
from tokenuq_pipeline.runtime.store import Store

CODE_LOCATION = "tokenuq"
"""The name in workspace.yaml; the UI lists runs under a job by this tag."""
MAX_WAVES = 20
SAID_ELSEWHERE = {"DagsterAssetCheckFailedError", "DagsterExecutionInterruptedError"}
WAITS_FOR_SLOT = "Step blocked by limit"
INDENT = "         "


class Interrupted(Exception):
    """The user stopped the run."""


class RunFailed(Exception):
    """A run did not succeed; why was said when it happened."""


@dataclass
class Made:
    """One asset that was materialised: seconds from when its turn came, peak memory of its process."""

    name: str
    seconds: float
    peak_memory_mib: float | None


@dataclass
class StudyRunner:
    """Brings a study up to date."""

    defs: dg.Definitions
    config: Config
    study: str
    instance: dg.DagsterInstance
    store: Store
    console: Console
    made: list[Made] = field(default_factory=list)

    def __post_init__(self):
        self.graph = self.defs.resolve_asset_graph()
        self.parents = parents_of(self.graph)
        self.groups = {op: [asset.key for asset in assets] for _, op, assets in stage_groups(self.config)}
        self.order = {key: number for number, key in enumerate(key for keys in self.groups.values() for key in keys)}

    @property
    def report(self) -> Key:
        return Key([self.study, "ablation_report"])

    def targets(self, ablations: list[str] | None) -> set[Key]:
        """The study's assets with all that they need; of `ablations` only, where given.

        Raises:
            InputError: the study has no such ablation.
        """
        own = {key for key in self.parents if key.path[0] == self.study}
        if ablations:
            known = self.config.studies[self.study].ablations
            for name in ablations:
                if name not in known:
                    raise InputError(
                        f"studies.yaml: {self.study}.ablations: has no {name!r}; it has {', '.join(known)}"
                    )
            own = {key for key in own if len(key.path) == 3 and key.path[1] in ablations}
        return ancestors(self.parents, own)

    def staleness(self, keys: set[Key]) -> Staleness:
        return staleness(self.graph, keys, self.instance, self.store)

    def bring_up_to_date(self, keys: set[Key]) -> None:
        """Run waves until nothing of `keys` is stale.

        Raises:
            Interrupted: by Ctrl-C.
            RunFailed: a stage or a blocking check failed.
        """
        observe(self.config, self.instance, self.store, [key.path[1] for key in keys if key.path[0] == "datasets"])
        for _ in range(MAX_WAVES):
            wave = find_wave(self.graph, keys, self.instance, self.store)
            if wave is None:
                return
            self._run(wave)
        raise RunFailed(f"still stale after {MAX_WAVES} runs: {', '.join(k.to_user_string() for k in wave.reasons)}")

    def report_waits(self, keys: set[Key]) -> set[Key]:
        """Which of the report's inputs, outside `keys`, are stale."""
        others = ancestors(self.parents, [self.report]) - {self.report} - keys
        return set(self.staleness(others).reasons)

    def _run(self, wave: Wave) -> None:
        job = self.defs.resolve_job_def(self.study)
        selected = job.get_subset(asset_selection=wave.assets, asset_check_selection=wave.checks)
        new = [key for key in wave.assets if wave.reasons[key] == NEVER_MADE]
        if new:
            self.console.line(f"{len(new)} assets to make for the first time")
        for key in sorted(wave.assets - set(new), key=self.order.get):
            self.console.line(f"to make anew: {key.to_user_string()} ({wave.reasons[key]})")
        for check in sorted(wave.checks if not wave.assets else (), key=str):
            self.console.line(f"to check: {check.asset_key.to_user_string()}: {check.name}")
        run = self.instance.create_run_for_job(
            selected,
            run_config={"loggers": {"console": {"config": {}}}},
            asset_selection=wave.assets or None,
            tags={
                **job.run_tags,
                ".dagster/repository": f"__repository__@{CODE_LOCATION}",
                PROCESS_TAG: process_name(),
            },
        )
        wave_log = _WaveLog(self, set(wave.assets))
        for event in execute_run_iterator(InMemoryJob(selected), run, self.instance):
            wave_log.see(event)
        if wave_log.interrupted:
            self._say_cancelled(run.run_id)
            raise Interrupted
        if not self.instance.get_run_by_id(run.run_id).is_success:
            raise RunFailed(f"run {run.run_id} failed")

    def _say_cancelled(self, run_id: str) -> None:
        """In the UI too, a run that a person stopped did not fail."""
        run = self.instance.get_run_by_id(run_id)
        if run.status != dg.DagsterRunStatus.CANCELED:
            self.instance.report_run_canceled(run, "Stopped from the terminal.")


class _WaveLog:
    """Follows one run's events: headings as assets start, times as they end, failures in a sentence."""

    def __init__(self, runner: StudyRunner, wave: set[Key]):
        self.runner, self.wave, self.console = runner, wave, runner.console
        self.queue: list[Key] = []
        self.started = time.monotonic()
        self.number = 0
        self.interrupted = False

    def see(self, event: dg.DagsterEvent) -> None:
        kind = event.event_type
        if kind == dg.DagsterEventType.STEP_START:
            self.queue = [key for key in self.runner.groups.get(event.step_key, []) if key in self.wave]
            self._heading()
        elif kind == dg.DagsterEventType.ASSET_MATERIALIZATION:
            self._done(event)
        elif kind == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            self._check(event.asset_check_evaluation_data)
        elif kind == dg.DagsterEventType.ENGINE_EVENT and (event.message or "").startswith(WAITS_FOR_SLOT):
            self.console.line(f"{event.step_key} waits for a slot of the pool {ACCELERATOR}: other runs have them all")
        elif kind == dg.DagsterEventType.STEP_UP_FOR_RETRY:
            data = event.step_retry_data
            self.console.line(f"{_innermost(data.error)}; tries again in {data.seconds_to_wait:.0f} s", INDENT)
        elif kind == dg.DagsterEventType.STEP_FAILURE:
            error = event.step_failure_data.error
            if error is None or error.cls_name not in SAID_ELSEWHERE:
                self.console.line(f"failed: {_reason(event)}", INDENT)
        elif kind == dg.DagsterEventType.RUN_FAILURE:
            data = event.job_failure_data
            self.interrupted = data.failure_reason == RunFailureReason.UNEXPECTED_TERMINATION
            if data.failure_reason == RunFailureReason.RUN_EXCEPTION and data.error:
                self.console.line(f"failed: {data.error.message.strip()}", INDENT)
        elif kind == dg.DagsterEventType.RUN_CANCELED:
            self.interrupted = True

    def _heading(self) -> None:
        self.started = time.monotonic()
        if self.queue:
            self.number += 1
            self.console.line(f"[{self.number:>2}/{len(self.wave)}] {self.queue[0].to_user_string()}")

    def _done(self, event: dg.DagsterEvent) -> None:
        materialization = event.step_materialization_data.materialization
        key, seconds = materialization.asset_key, time.monotonic() - self.started
        memory = materialization.metadata.get("peak_memory_mib")
        self.runner.made.append(Made(key.to_user_string(), seconds, memory.value if memory else None))
        self.console.line(f"{key.to_user_string()} done in {seconds:.0f} s", INDENT)
        if key in self.queue:
            self.queue.remove(key)
        self._heading()

    def _check(self, check) -> None:
        if not check.passed:
            word = "check failed" if check.severity == dg.AssetCheckSeverity.ERROR else "warning"
            name = f"{check.asset_key.to_user_string()}: {check.check_name}"
            self.console.line(f"{word}: {name}: {check.description}", INDENT)


def _reason(event: dg.DagsterEvent) -> str:
    """The sentence of a failure; for a bug its class and message, and where to read on."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    if data.error is None:
        return f"{event.step_key}, for no stated reason"
    return f"{_innermost(data.error)} (traceback: `make ui`, run {event.logging_tags.get('run_id', '')})"


def _innermost(error) -> str:
    """The message of the exception that all others were raised for."""
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error else "no stated reason"
