"""A run in one tracker, called in a thread of its own, which its failures do not leave."""

import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from transformers import TrainerState

from tokenuq_ml.tracking.file_trackers import TensorBoardRun, TrackioRun
from tokenuq_ml.tracking.guarded_thread import GuardedThread
from tokenuq_ml.tracking.server_trackers import MlflowRun, WandbRun
from tokenuq_ml.tracking.tracker_run import RunIdentity, Status, TrackerRun

CLASSES: dict[str, type[TrackerRun]] = {
    "tensorboard": TensorBoardRun,
    "mlflow": MlflowRun,
    "wandb": WandbRun,
    "trackio": TrackioRun,
}
OPEN_S, CALL_S, CLOSE_S = 120.0, 60.0, 60.0
"""Seconds that a tracker has to open a run, its import included; to take a row; to write what is left at the end."""
STOPPED_S = 15.0
"""The same at the end of a training that is stopped: whoever stops it kills it after half a minute."""


def close_all(runs: Sequence["GuardedRun"], args: Any, state: TrainerState, status: Status) -> None:
    """End runs, all at once: together they have the time of one."""
    limit_s, since = CLOSE_S if status == "FINISHED" else STOPPED_S, time.monotonic()
    for run in runs:
        run.close(args, copy(state), status)
    for run in runs:
        run.wait_closed(limit_s, since)


class GuardedRun:
    """A tracker's run; the first failure is said once, and ends the use of the tracker.

    Args:
        name: of the tracker.
        identity: of the run.
        warn: called with the sentence that says what failed.
    """

    def __init__(self, name: str, identity: RunIdentity, warn: Callable[[str], None]):
        self.name, self._warn, self._is_told = name, warn, False
        self._run = CLASSES[name](identity)
        self._thread = GuardedThread(name, CALL_S)
        self._step = 0
        self._closing: threading.Event | None = None

    @property
    def failure(self) -> str | None:
        """Why the tracker is not used any more; None while it works."""
        return self._thread.failure

    @property
    def figures(self) -> dict[str, str]:
        """Where the run is, and why it is incomplete: metadata of the asset."""
        place, failure = self._run.place, self.failure
        told = {f"{self.name}_failure": f"{failure} (step {self._step})"} if failure else {}
        return ({f"{self.name}_run": place} if place else {}) | told

    def open(self, args: Any, state: TrainerState, model: Any = None) -> None:
        """Open the run, as `TrackerRun.open`."""
        self._thread.wait(self._thread.call(lambda: self._run.open(args, state, model)), OPEN_S)
        self._tell()

    def log(self, args: Any, state: TrainerState, values: dict[str, float]) -> None:
        """Add a row, without waiting for the tracker; rows that it has from before a resumption are left out."""
        # The Trainer changes its own.
        state, values = copy(state), dict(values)
        if self.failure is None and state.global_step > self._run.known_step:
            self._step = state.global_step
            self._thread.call(lambda: self._run.log(args, state, values))
        self._tell()

    def close(self, args: Any, state: TrainerState, status: Status) -> None:
        """Begin to end the run, as `TrackerRun.close`; `wait_closed` waits for it."""
        self._closing = self._thread.call(lambda: self._run.close(args, state, status))
        self._thread.end()

    def wait_closed(self, limit_s: float, since: float) -> None:
        """Wait until the run has ended, as `GuardedThread.wait`."""
        self._thread.wait(self._closing, limit_s, since)
        self._tell()

    def _tell(self) -> None:
        if self.failure is not None and not self._is_told:
            self._is_told = True
            since = f" any more after step {self._step}" if self._step else ""
            self._warn(f"{self.name} is not reported to{since}: {self.failure}")
