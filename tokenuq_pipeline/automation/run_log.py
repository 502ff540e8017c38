"""One run on the console: a heading as each asset starts, its time as it ends, failures in one sentence."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg

from tokenuq_pipeline.runtime.console import INDENT, Console
from tokenuq_pipeline.runtime.dagster_internals import WAITS_FOR_SLOT, exception_of_run, was_terminated
from tokenuq_pipeline.runtime.instance import ACCELERATOR

REPORTED_OTHERWISE = {"DagsterAssetCheckFailedError", "DagsterExecutionInterruptedError"}
"""Errors of a step that the failed check, or the interrupted run, already reports."""


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
        interrupted: whether a person stopped the run.
    """

    def __init__(self, console: Console, groups: Mapping[str, list[dg.AssetKey]], assets: frozenset[dg.AssetKey]):
        """Start a log.

        Args:
            console: where to print.
            groups: op name -> the assets that the op makes, in order.
            assets: the assets that the run makes.
        """
        self._console, self._groups, self._assets = console, groups, assets
        self._queue: list[dg.AssetKey] = []
        self._started, self._number = time.monotonic(), 0
        self.timings: list[AssetTiming] = []
        self.interrupted = False

    def see(self, event: dg.DagsterEvent) -> None:
        """Print an event, or ignore it."""
        kinds = dg.DagsterEventType
        if event.event_type == kinds.STEP_START:
            self._queue = [key for key in self._groups.get(event.step_key, []) if key in self._assets]
            self._heading()
        elif event.event_type == kinds.ASSET_MATERIALIZATION:
            self._made(event)
        elif event.event_type == kinds.ASSET_CHECK_EVALUATION:
            self._checked(event.asset_check_evaluation_data)
        elif event.event_type == kinds.ENGINE_EVENT and (event.message or "").startswith(WAITS_FOR_SLOT):
            self._console.line(f"{event.step_key} waits for a slot of the pool {ACCELERATOR}: other runs use them all")
        elif event.event_type == kinds.STEP_UP_FOR_RETRY:
            data = event.step_retry_data
            self._console.line(f"{_innermost(data.error)}; retries in {data.seconds_to_wait:.0f} s", INDENT)
        elif event.event_type == kinds.STEP_FAILURE:
            error = event.step_failure_data.error
            if error is None or error.cls_name not in REPORTED_OTHERWISE:
                self._console.line(f"failed: {_reason(event)}", INDENT)
        elif event.event_type == kinds.RUN_FAILURE:
            self.interrupted = was_terminated(event)
            if (message := exception_of_run(event)) is not None:
                self._console.line(f"failed: {message}", INDENT)
        elif event.event_type == kinds.RUN_CANCELED:
            self.interrupted = True

    def _heading(self) -> None:
        self._started = time.monotonic()
        if self._queue:
            self._number += 1
            self._console.line(f"[{self._number:>2}/{len(self._assets)}] {self._queue[0].to_user_string()}")

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
        if not check.passed:
            word = "check failed" if check.severity == dg.AssetCheckSeverity.ERROR else "warning"
            name = f"{check.asset_key.to_user_string()}: {check.check_name}"
            self._console.line(f"{word}: {name}: {check.description}", INDENT)


def _reason(event: dg.DagsterEvent) -> str:
    """Return the message of a failed step; for a bug, its exception and where to find the traceback."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    if data.error is None:
        return f"{event.step_key}, for an unknown reason"
    return f"{_innermost(data.error)} (traceback: `make ui`, run {event.logging_tags.get('run_id', '')})"


def _innermost(error) -> str:
    """Return the message of the exception at the start of the chain of causes."""
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error else "an unknown reason"
