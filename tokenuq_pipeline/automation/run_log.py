"""One run on the console: a heading as each asset starts, its time as it ends. Failures are collected for the end."""

import time
from dataclasses import dataclass

import dagster as dg

from tokenuq_pipeline.runtime.console import INDENT, Console
from tokenuq_pipeline.runtime.dagster_internals import WAITS_FOR_SLOT, was_terminated
from tokenuq_pipeline.runtime.failures import Failures, RunPlan
from tokenuq_pipeline.runtime.instance import ACCELERATOR


@dataclass(frozen=True)
class AssetTiming:
    """One asset that was made: seconds from the start of its turn, peak memory of its process."""

    name: str
    seconds: float
    peak_memory_mib: float | None


class RunLog:
    """Prints the events of one run.

    Attributes:
        timings: the assets that the run has made.
        failures: what failed, to be printed when the run has ended.
        interrupted: whether a person stopped the run.
    """

    def __init__(self, console: Console, plan: RunPlan):
        """Start a log.

        Args:
            console: where to print.
            plan: what the run makes.
        """
        self._console, self._plan = console, plan
        self._queue: list[dg.AssetKey] = []
        self._failed: list[str] = []
        self._started, self._number = time.monotonic(), 0
        self.timings: list[AssetTiming] = []
        self.failures = Failures(plan)
        self.interrupted = False

    def see(self, event: dg.DagsterEvent) -> None:
        """Print an event, or ignore it."""
        kinds = dg.DagsterEventType
        if (failed := self.failures.see(event)) is not None:
            self._failed.append(failed)
        if event.event_type == kinds.STEP_START:
            for name in self._failed:
                self._console.line(f"without {name}, which stopped (the reason is printed at the end):")
            self._failed = []
            self._queue = list(self._plan.steps.get(event.step_key, ()))
            self._heading()
        elif event.event_type == kinds.ASSET_MATERIALIZATION:
            self._made(event)
        elif event.event_type == kinds.ASSET_CHECK_EVALUATION:
            self._checked(event.asset_check_evaluation_data)
        elif event.event_type == kinds.ENGINE_EVENT and (event.message or "").startswith(WAITS_FOR_SLOT):
            self._console.line(f"{event.step_key} waits for a slot of the pool {ACCELERATOR}: other runs use them all")
        elif event.event_type == kinds.STEP_UP_FOR_RETRY:
            # Without the reason, which would be printed three times if no retry helps. The UI shows each.
            self._console.line(f"crashed; retries in {event.step_retry_data.seconds_to_wait:.0f} s", INDENT)
        elif event.event_type == kinds.RUN_FAILURE:
            self.interrupted = was_terminated(event)
        elif event.event_type == kinds.RUN_CANCELED:
            self.interrupted = True

    def _heading(self) -> None:
        self._started = time.monotonic()
        if self._queue:
            self._number += 1
            total = sum(map(len, self._plan.steps.values()))
            self._console.line(f"[{self._number:>2}/{total}] {self._queue[0].to_user_string()}")

    def _made(self, event: dg.DagsterEvent) -> None:
        materialization = event.step_materialization_data.materialization
        key, seconds = materialization.asset_key, time.monotonic() - self._started
        memory = materialization.metadata.get("peak_memory_mib")
        self.timings.append(AssetTiming(key.to_user_string(), seconds, memory.value if memory else None))
        self._console.line(f"{key.to_user_string()} done in {seconds:.0f} s", INDENT)
        if key in self._queue:
            self._queue.remove(key)
        self._heading()

    def _checked(self, check: dg.AssetCheckEvaluation) -> None:
        """Print a check that did not pass and stops nothing."""
        stops = check.blocking and check.severity == dg.AssetCheckSeverity.ERROR
        if not check.passed and not stops:
            word = "check failed" if check.severity == dg.AssetCheckSeverity.ERROR else "warning"
            name = f"{check.asset_key.to_user_string()}: {check.check_name}"
            self._console.line(f"{word}: {name}: {check.description}", INDENT)
