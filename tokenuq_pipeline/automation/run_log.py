"""One run, event by event: which asset starts, what is said of it, when it ends. Failures are collected for the end."""

import time
from dataclasses import dataclass, field

import dagster as dg

from tokenuq_pipeline.runtime.dagster_internals import WAITS_FOR_SLOT, was_terminated
from tokenuq_pipeline.runtime.failures import Failures, RunPlan
from tokenuq_pipeline.runtime.instance import ACCELERATOR
from tokenuq_pipeline.runtime.run_view import RunView

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
    """Shows the events of one run.

    Attributes:
        timings: the assets that the run has made.
        failures: what failed, to be printed when the run has ended.
        interrupted: whether a person stopped the run.
    """

    def __init__(self, view: RunView, plan: RunPlan):
        """Start a log.

        Args:
            view: where to show it.
            plan: what the run makes.
        """
        self._view, self._plan = view, plan
        self._turns: dict[str, _Turn] = {}
        self._working: set[str] = set()
        self.timings: list[AssetTiming] = []
        self.failures = Failures(plan)
        self.interrupted = False
        view.plan([key.to_user_string() for keys in plan.steps.values() for key in keys])

    def see(self, event: dg.DagsterEvent) -> None:
        """Show an event, or ignore it."""
        kinds, step = dg.DagsterEventType, event.step_key or ""
        if (failed := self.failures.see(event)) is not None:
            self._view.fail(failed, [key.to_user_string() for key in self.failures.waiting()])
        if event.event_type == kinds.STEP_START:
            self._turns[step] = _Turn(list(self._plan.steps.get(step, ())))
            self._begin(self._turns[step])
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
            self._view.line(f"crashed; retries in {seconds:.0f} s", self._asset_of(step))
        elif event.event_type == kinds.RUN_FAILURE:
            self.interrupted = self.interrupted or was_terminated(event)
        elif event.event_type == kinds.RUN_CANCELED:
            self.interrupted = True

    def hear(self, level: int, message: str, step: str | None) -> None:
        """Show a log message of a step, or leave it out."""
        self._view.hear(self._asset_of(step or ""), level, message)

    def _asset_of(self, step: str) -> str:
        """Return the asset that a step makes now; the step itself if it makes none."""
        turn = self._turns.get(step)
        return turn.assets[0].to_user_string() if turn and turn.assets else step

    def _engine(self, message: str, step: str) -> None:
        if message.startswith(INTERRUPTS_STEPS):
            self.interrupted = True
        # If other steps of this run work, they use the slots.
        elif message.startswith(WAITS_FOR_SLOT) and not self._working:
            self._view.console.line(f"{step} waits for a slot of the pool {ACCELERATOR}: other runs use them all")

    def _begin(self, turn: _Turn) -> None:
        turn.started = time.monotonic()
        if turn.assets:
            self._view.start(turn.assets[0].to_user_string())

    def _made(self, event: dg.DagsterEvent, turn: _Turn) -> None:
        materialization = event.step_materialization_data.materialization
        key, seconds = materialization.asset_key, time.monotonic() - turn.started
        memory = materialization.metadata.get("peak_memory_mib")
        self.timings.append(AssetTiming(key.to_user_string(), seconds, memory.value if memory else None))
        self._view.finish(key.to_user_string(), seconds)
        if key in turn.assets:
            turn.assets.remove(key)
        self._begin(turn)

    def _checked(self, check: dg.AssetCheckEvaluation) -> None:
        """Print a check that did not pass and stops nothing."""
        stops = check.blocking and check.severity == dg.AssetCheckSeverity.ERROR
        if not check.passed and not stops:
            word = "check failed" if check.severity == dg.AssetCheckSeverity.ERROR else "warning"
            name = f"{check.asset_key.to_user_string()}: {check.check_name}"
            self._view.line(f"{word}: {name}: {check.description}")
