"""One run on the console: a heading as each asset starts, its time as it ends. Failures are collected for the end."""

import time
from dataclasses import dataclass, field

import dagster as dg

from tokenuq_pipeline.runtime.console import INDENT, Console, shown_message
from tokenuq_pipeline.runtime.dagster_internals import WAITS_FOR_SLOT, was_terminated
from tokenuq_pipeline.runtime.failures import Failures, RunPlan
from tokenuq_pipeline.runtime.instance import ACCELERATOR

INTERRUPTS_STEPS = "Multiprocess executor: received termination signal"
"""The start of Dagster's event of a run that was interrupted, and interrupts its steps."""


@dataclass(frozen=True)
class AssetTiming:
    """One asset that was made: seconds from the start of its turn, peak memory of its process."""

    name: str
    seconds: float
    peak_memory_mib: float | None


@dataclass
class _Turn:
    """A step that works: the assets that it has not made yet, and when it began the first of them."""

    assets: list[dg.AssetKey]
    started: float = field(default_factory=time.monotonic)


class RunLog:
    """Prints the events of one run.

    Attributes:
        timings: the assets that the run has made.
        failures: what failed, to be printed when the run has ended.
        interrupted: whether a person stopped the run.
    """

    def __init__(self, console: Console, plan: RunPlan, side_by_side: bool = False):
        """Start a log.

        Args:
            console: where to print.
            plan: what the run makes.
            side_by_side: several steps work at once, so that each line names its asset.
        """
        self._console, self._plan, self._side_by_side = console, plan, side_by_side
        self._turns: dict[str, _Turn] = {}
        self._working: set[str] = set()
        self._failed: list[str] = []
        self._number = 0
        self.timings: list[AssetTiming] = []
        self.failures = Failures(plan)
        self.interrupted = False

    def see(self, event: dg.DagsterEvent) -> None:
        """Print an event, or ignore it."""
        kinds, step = dg.DagsterEventType, event.step_key or ""
        if (failed := self.failures.see(event)) is not None:
            if self._side_by_side and step:
                self._console.line(f"{failed} stopped (the reason is printed at the end)", INDENT)
            else:
                self._failed.append(failed)
        if event.event_type == kinds.STEP_START:
            for name in self._failed:
                self._console.line(f"without {name}, which stopped (the reason is printed at the end):")
            self._failed = []
            self._turns[step] = _Turn(list(self._plan.steps.get(step, ())))
            self._heading(self._turns[step])
        elif event.event_type == kinds.STEP_WORKER_STARTING:
            self._working.add(step)
        elif event.event_type in (kinds.STEP_SUCCESS, kinds.STEP_FAILURE):
            self._turns.pop(step, None)
            self._working.discard(step)
        elif event.event_type == kinds.ASSET_MATERIALIZATION:
            self._made(event, self._turns.setdefault(step, _Turn([])))
        elif event.event_type == kinds.ASSET_CHECK_EVALUATION:
            self._checked(event.asset_check_evaluation_data)
        elif event.event_type == kinds.ENGINE_EVENT:
            self._engine(event.message or "", step)
        elif event.event_type == kinds.STEP_UP_FOR_RETRY:
            # Without the reason, which would be printed three times if no retry helps. The UI shows each.
            seconds = event.step_retry_data.seconds_to_wait
            self._console.line(f"{self._named(step)}crashed; retries in {seconds:.0f} s", INDENT)
        elif event.event_type == kinds.RUN_FAILURE:
            self.interrupted = self.interrupted or was_terminated(event)
        elif event.event_type == kinds.RUN_CANCELED:
            self.interrupted = True

    def hear(self, level: int, message: str, step: str | None) -> None:
        """Print a log message of a step, or leave it out."""
        if (text := shown_message(level, message)) is not None:
            self._console.line(f"{self._named(step or '', text)}{text}", INDENT)

    def _named(self, step: str, text: str = "") -> str:
        """Return how a line of one of several steps begins: with the asset that it makes now."""
        if not self._side_by_side or not step:
            return ""
        turn = self._turns.get(step)
        name = turn.assets[0].to_user_string() if turn and turn.assets else step
        # Messages of stages about their progress begin so by themselves.
        return "" if text.startswith(name) else f"{name}: "

    def _engine(self, message: str, step: str) -> None:
        if message.startswith(INTERRUPTS_STEPS):
            self.interrupted = True
        # If other steps of this run work, they use the slots.
        elif message.startswith(WAITS_FOR_SLOT) and not self._working:
            self._console.line(f"{step} waits for a slot of the pool {ACCELERATOR}: other runs use them all")

    def _heading(self, turn: _Turn) -> None:
        turn.started = time.monotonic()
        if turn.assets:
            self._number += 1
            total = sum(map(len, self._plan.steps.values()))
            self._console.line(f"[{self._number:>2}/{total}] {turn.assets[0].to_user_string()}")

    def _made(self, event: dg.DagsterEvent, turn: _Turn) -> None:
        materialization = event.step_materialization_data.materialization
        key, seconds = materialization.asset_key, time.monotonic() - turn.started
        memory = materialization.metadata.get("peak_memory_mib")
        self.timings.append(AssetTiming(key.to_user_string(), seconds, memory.value if memory else None))
        self._console.line(f"{key.to_user_string()} done in {seconds:.0f} s", INDENT)
        if key in turn.assets:
            turn.assets.remove(key)
        self._heading(turn)

    def _checked(self, check: dg.AssetCheckEvaluation) -> None:
        """Print a check that did not pass and stops nothing."""
        stops = check.blocking and check.severity == dg.AssetCheckSeverity.ERROR
        if not check.passed and not stops:
            word = "check failed" if check.severity == dg.AssetCheckSeverity.ERROR else "warning"
            name = f"{check.asset_key.to_user_string()}: {check.check_name}"
            self._console.line(f"{word}: {name}: {check.description}", INDENT)
