"""Run a study wave by wave, and print its progress on the console.

The runs are Dagster's runs of the study's job, with only stale assets selected. What is stale is decided in
`staleness.py`; how a stage is run, in `assets/run_stage.py`.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import dagster as dg

from tokenuq_ml.config.load import Config
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.request import PARALLEL_STAGES
from tokenuq_pipeline.assets.checks import table_checks
from tokenuq_pipeline.assets.graph import stage_groups
from tokenuq_pipeline.automation.adoption import adopt, checks_by_asset, counted
from tokenuq_pipeline.automation.explain import explain
from tokenuq_pipeline.automation.run_log import AssetTiming, RunLog
from tokenuq_pipeline.automation.run_tail import followed
from tokenuq_pipeline.automation.staleness import (
    MAX_WAVES,
    NEVER_MADE,
    Key,
    Records,
    Staleness,
    Wave,
    ancestors,
    find_wave,
    staleness,
)
from tokenuq_pipeline.runtime.console import CONSOLE_CONFIG, Console
from tokenuq_pipeline.runtime.dagster_internals import REPOSITORY_TAG, ReconstructableJob, run_job
from tokenuq_pipeline.runtime.data_files import observe
from tokenuq_pipeline.runtime.failures import RunPlan
from tokenuq_pipeline.runtime.instance import ONLY_STALE_TAG, PROCESS_TAG
from tokenuq_pipeline.runtime.launchers.choice import uses_ray
from tokenuq_pipeline.runtime.launchers.local import stage_environment
from tokenuq_pipeline.runtime.launchers.preloaded import preloaded
from tokenuq_pipeline.runtime.owners import Owner
from tokenuq_pipeline.runtime.run_view import LineView, RunView
from tokenuq_pipeline.runtime.store import Store

CODE_LOCATION = "tokenuq"
"""The name of the code location in workspace.yaml."""


def _ignore(level: int, message: str, step: str | None) -> None:
    """Leave a message out."""


class Interrupted(Exception):
    """The user stopped the run."""


class RunFailed(Exception):
    """A run did not succeed.

    Attributes:
        errors: one for each failure, to be printed last.
    """

    def __init__(self, message: str, errors: Sequence[str] = ()):
        super().__init__(message)
        self.errors = list(errors) or [f"failed: {message}"]


@dataclass(frozen=True)
class JobRecipe:
    """How the process of a step builds the study's job, with the multiprocess executor: it calls a function."""

    module: str
    function: str
    arguments: tuple[str, ...]

    def job(self) -> ReconstructableJob:
        """Return the job as Dagster hands it to other processes."""
        # Dagster's annotation is a tuple of one.
        return dg.build_reconstructable_job(self.module, self.function, cast(Any, self.arguments))


@dataclass
class StudyRunner:
    """Brings a study up to date.

    Attributes:
        timings: the assets that were made.
        before_first_wave: called once with the names of the assets that are to be made; may raise.
        preload: let stages start as forks of a process that has imported the libraries.
        recipe: of the processes in which steps run side by side; None: they run in this one, one after another.
        job: name of the job whose assets are made; default: the study's.
        view: shows the runs; default: plain lines on the console.
    """

    defs: dg.Definitions
    config: Config
    study: str
    instance: dg.DagsterInstance
    store: Store
    console: Console
    timings: list[AssetTiming] = field(default_factory=list)
    before_first_wave: Callable[[list[str]], None] | None = None
    preload: bool = False
    recipe: JobRecipe | None = None
    job: str | None = None
    view: RunView | None = None

    def __post_init__(self):
        self.records = Records.of(self.defs.resolve_asset_graph(), self.config, self.instance, self.store)
        self.parents = self.records.parents
        self.groups = {group.op: [asset.key for asset in group.assets] for group in stage_groups(self.config)}
        self.order = {key: number for number, key in enumerate(key for keys in self.groups.values() for key in keys)}

    @property
    def title(self) -> str:
        """Return what is run, in words."""
        return f"study {self.study}" if self.job is None else self.study

    @property
    def report(self) -> Key:
        """Return the key of the study's report."""
        return Key([self.study, "ablation_report"])

    def targets(self, ablations: list[str] | None) -> set[Key]:
        """Return the study's assets, or those of `ablations` only, with everything upstream of them.

        Raises:
            InputError: the study has no such ablation.
        """
        own = {key for key in self.parents if key.path[0] == self.study}
        if ablations:
            known = self.config.studies[self.study].ablations
            wanted = {one for name in ablations for one in self._named(name)}
            for name in ablations:
                if not self._named(name):
                    listed = ", ".join(known)
                    raise InputError(f"studies.yaml: {self.study} has no ablation {name!r}; it has {listed}")
            own = {key for key in own if len(key.path) == 3 and key.path[1] in wanted}
        return ancestors(self.parents, own)

    def _named(self, name: str) -> list[str]:
        """Return the study's ablations that a name stands for: itself, or all settings and seeds of a family."""
        known = self.config.studies[self.study].ablations
        if name in known:
            return [name]
        return [one for one in known if name in (self.config.ablations[one].setting, self.config.ablations[one].family)]

    def staleness(self, keys: set[Key]) -> Staleness:
        """Return which of `keys` are stale, and why."""
        return staleness(self.records, keys)

    def bring_up_to_date(self, keys: set[Key]) -> None:
        """Run waves until nothing of `keys` is stale.

        Raises:
            Interrupted: by Ctrl-C.
            RunFailed: a stage or a blocking check failed.
        """
        observe(self.config, self.instance, self.store, [key.path[1] for key in keys if key.path[0] == "datasets"])
        for _ in range(MAX_WAVES):
            self._adopt(keys)
            wave = find_wave(self.records, keys)
            if wave is None:
                return
            if self.before_first_wave is not None:
                check, self.before_first_wave = self.before_first_wave, None
                check(sorted(key.to_user_string() for key in wave.assets))
            self._run(wave, keys)
        raise RunFailed(f"still stale after {MAX_WAVES} runs: {', '.join(k.to_user_string() for k in wave.reasons)}")

    def _adopt(self, keys: set[Key]) -> None:
        """Report to Dagster what is fresh in the store and new to it.

        Raises:
            RunFailed: a file differs from its recorded hash.
        """
        began = time.monotonic()
        found = adopt(self.records, keys, checks_by_asset(table_checks(self.config)))
        for asset, outcome in found.recovered.items():
            self.console.line(f"{asset}: {outcome}")
        if found.adopted:
            seconds = time.monotonic() - began
            self.console.line(
                f"{counted(len(found.adopted))} of the store adopted into Dagster's records in {seconds:.1f} s"
            )
        if found.damaged:
            raise RunFailed(
                f"{counted(len(found.damaged))} of the store damaged",
                [f"damaged: {reason}" for reason in found.damaged.values()],
            )

    def stale_report_inputs(self, keys: set[Key]) -> set[Key]:
        """Return the stale inputs of the report that are not in `keys`."""
        others = ancestors(self.parents, [self.report]) - {self.report} - keys
        return set(self.staleness(others).reasons)

    def _run(self, wave: Wave, targets: set[Key]) -> None:
        self._announce(wave)
        job = self.defs.resolve_job_def(self.job or self.study)
        selected = job.get_subset(asset_selection=wave.assets, asset_check_selection=wave.checks)
        run = self.instance.create_run_for_job(
            selected,
            run_config=CONSOLE_CONFIG,
            asset_selection=wave.assets or None,
            tags={
                **job.run_tags,
                REPOSITORY_TAG: f"__repository__@{CODE_LOCATION}",
                PROCESS_TAG: str(Owner.current()),
                ONLY_STALE_TAG: "true",
            },
        )
        made = {op: [key for key in keys if key in wave.assets] for op, keys in self.groups.items()}
        log = RunLog(self.view or LineView(self.console), RunPlan(made, self.parents, targets))
        try:
            with self._preloaded(wave), self._heard(log):
                if self.recipe is None:
                    for event in run_job(selected, run, self.instance):
                        log.see(event)
                else:
                    job = self.recipe.job().get_subset(asset_selection=wave.assets, asset_check_selection=wave.checks)
                    self._run_side_by_side(job, run, log)
        finally:
            self.timings += log.timings
        if log.interrupted:
            self._mark_canceled(run.run_id)
            raise Interrupted
        if not self.instance.get_run_by_id(run.run_id).is_success:
            raise RunFailed(f"run {run.run_id} failed", log.failures.errors())

    @contextlib.contextmanager
    def _heard(self, log: RunLog) -> Iterator[None]:
        """Let the messages of stages go to the log of their run; if steps have processes, their event log has them."""
        before, self.console.hears = self.console.hears, log.hear if self.recipe is None else _ignore
        try:
            yield
        finally:
            self.console.hears = before

    def _run_side_by_side(self, job: ReconstructableJob, run: dg.DagsterRun, log: RunLog) -> None:
        """Execute a run whose steps have processes of their own; their log says what they do."""
        with followed(self.instance, run.run_id, log):
            deque(run_job(job, run, self.instance), maxlen=0)

    def _preloaded(self, wave: Wave) -> contextlib.AbstractContextManager[None]:
        """Return the context in which stages are forks of one process, if the wave has several that it helps."""
        groups = [
            group
            for group in stage_groups(self.config)
            if group.entrypoint in PARALLEL_STAGES and any(asset.key in wave.assets for asset in group.assets)
        ]
        helps = self.preload and len(groups) > 1 and not uses_ray()
        return preloaded(stage_environment()) if helps else contextlib.nullcontext()

    def _announce(self, wave: Wave) -> None:
        new = [key for key in wave.assets if wave.reasons[key] == NEVER_MADE]
        if new:
            self.console.line(f"{len(new)} assets to make for the first time")
        for key in sorted(wave.assets - set(new), key=self.order.get):
            reason = explain(wave.reasons[key], self.records.assets[key], self.store)
            self.console.line(f"to rebuild: {key.to_user_string()} ({reason})")
        for check in sorted(wave.checks if not wave.assets else (), key=str):
            self.console.line(f"to check: {check.asset_key.to_user_string()}: {check.name}")

    def _mark_canceled(self, run_id: str) -> None:
        """Show a run that a person stopped as canceled in the UI, not as failed."""
        run = self.instance.get_run_by_id(run_id)
        if run.status not in (dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.SUCCESS):
            self.instance.report_run_canceled(run, "Stopped from the terminal.")
