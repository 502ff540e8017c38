"""The Trainer callback that reports a training to the trackers of its study, and the same for an evaluation.

Only the process of rank 0 has it. What a tracker does never ends a training (`guarded_run.py`).
"""

import json
import math
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.tracking.guarded_run import GuardedRun, close_all
from tokenuq_ml.tracking.request import RUN, TrackedRun, TrackingRequest
from tokenuq_ml.tracking.tracker_run import BareArguments, RunIdentity, Status

OWN = "tokenuq."
"""Beginning of the tags of a run; those of an evaluation that is added to it have the stage in addition."""
ASSET = ("study", "ablation", "asset", "stage")
"""Tags that say what the run is."""
FILE = "tracking.json"
"""The run of a training that has not ended, next to its checkpoints."""
Warn = Callable[[str], None]


class StepRows(Protocol):
    """What is recorded of each step."""

    log_rows: list[dict]
    """A row per step: `step`, `loss`, and what else is recorded."""


class TrackingCallback(TrainerCallback, ExportableState):
    """Reports each row of the log to all trackers. A context: its end ends the runs.

    The id of the run is in each checkpoint, in which the Trainer keeps the state of callbacks, and next to them for a
    training that has none yet. So a training that resumes continues the run, and one that is repeated begins another.

    Args:
        request: the trackers.
        stage: whose name and tags the run has.
        work_dir: of the checkpoints.
        warn: called with a sentence when a tracker fails.
    """

    def __init__(self, request: TrackingRequest, stage: str, work_dir: Path, warn: Warn):
        self._request, self._stage, self._file, self._warn = request, stage, Path(work_dir) / FILE, warn
        self._runs: list[GuardedRun] = []
        self._args: Any = None
        self._state: TrainerState | None = None
        self.run: TrackedRun | None = None
        """The run, once the training has begun."""
        self.recorder: StepRows | None = None
        """Has the rows of `training_log`, which are reported with those of the Trainer. The training sets it."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {}, "attributes": {RUN: self.run.id if self.run else None}}

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Open the runs."""
        known = self._known(state)
        own = known or uuid.uuid4().hex[:12]
        if known is None:
            with atomic_write(self._file) as file:
                file.write(json.dumps({RUN: own}).encode())
        self.run = TrackedRun(id=own, name=self._request.run_name(self._stage), step=state.global_step)
        identity = _identity(self._request, self._stage, self.run, OWN, continues=known is not None)
        self._args, self._state = _trainer_arguments(args, identity), state
        self._runs = [GuardedRun(name, identity, self._warn) for name in self._request.report_to]
        for run in self._runs:
            run.open(self._args, copy(state), model)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report a row of the Trainer's log, with what `training_log` has of the step."""
        values = {**(logs or {}), **(self._row(state.global_step) if "grad_norm" in (logs or {}) else {})}
        assert self.run is not None
        self.run = self.run.model_copy(update={"step": state.global_step})
        # The Trainer's estimate, which is 0: `costs.json` has what was counted.
        values.pop("total_flos", None)
        for run in self._runs:
            run.log(self._args, state, numbers(values))

    def __enter__(self) -> "TrackingCallback":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status: Status = "FAILED"
        if kind is None:
            status = "FINISHED"
        elif issubclass(kind, KeyboardInterrupt):
            status = "KILLED"
        if self._state is not None:
            close_all(self._runs, self._args, self._state, status)

    @property
    def figures(self) -> dict[str, str]:
        """The id of the run, where each tracker has it, and what failed: metadata of the asset."""
        own = {RUN: self.run.id} if self.run else {}
        return own | {name: text for run in self._runs for name, text in run.figures.items()}

    def forget(self) -> None:
        """Let a training of the same asset begin another run: this one is reported."""
        self._file.unlink(missing_ok=True)

    def _row(self, step: int) -> dict[str, Any]:
        """Return what `training_log` has of a step."""
        row = self.recorder.log_rows[-1] if self.recorder and self.recorder.log_rows else {}
        return {name: value for name, value in row.items() if name != "step"} if row.get("step") == step else {}

    def _known(self, state: TrainerState) -> str | None:
        """Return the id of the run that an earlier process has begun."""
        # Of a checkpoint; the Trainer has read it.
        kept: Any = state.stateful_callbacks
        kept = kept.get(type(self).__name__) if isinstance(kept, dict) else None
        if isinstance(kept, dict) and (found := kept.get("attributes", {}).get(RUN)):
            return str(found)
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(self._file.read_bytes())[RUN])
        return None


def mirror_figures(
    request: TrackingRequest,
    stage: str,
    figures: Mapping[str, Any],
    evaluated: TrackedRun | None,
    warn: Warn,
) -> dict[str, str]:
    """Add the figures of an evaluation to the run of the training that is evaluated.

    A model that was trained without trackers gets a run of its evaluation alone.

    Args:
        request: the trackers.
        stage: the evaluation, whose tags the run gets too.
        figures: name -> value; those that are no numbers are left out.
        evaluated: the run of the training.
        warn: called with a sentence when a tracker fails.

    Returns:
        Where the run is, and what failed: metadata of the asset.
    """
    run = evaluated or TrackedRun(id=uuid.uuid4().hex[:12], name=request.run_name(stage), step=0)
    prefix = OWN if evaluated is None else f"{OWN}{stage}."
    identity = _identity(request, stage, run, prefix, continues=evaluated is not None)
    args, state = BareArguments(_run_name(identity), identity.project), TrainerState(global_step=run.step)
    # With this prefix, transformers' callbacks group them as figures of evaluations.
    values = {f"eval_{key}": value for key, value in numbers(figures).items()}
    runs = [GuardedRun(tracker, identity, warn) for tracker in request.report_to]
    for one in runs:
        one.open(args, state)
        one.log(args, state, values)
    close_all(runs, args, state, "FINISHED")
    return {RUN: run.id} | {key: text for one in runs for key, text in one.figures.items()}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that trackers take: finite numbers, and no true or false."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _identity(request: TrackingRequest, stage: str, run: TrackedRun, prefix: str, continues: bool) -> RunIdentity:
    tags = {f"{prefix}{tag}": value for tag, value in request.tags[stage].items() if prefix == OWN or tag not in ASSET}
    return RunIdentity(run.id, run.name, request.project, tags, request.folder, continues)


def _trainer_arguments(args: Any, identity: RunIdentity) -> Any:
    """Return the Trainer's arguments with the names by which its callbacks open a run."""
    own = copy(args)
    own.run_name, own.project, own.trackio_static_space_id = _run_name(identity), identity.project, False
    return own


def _run_name(identity: RunIdentity) -> str:
    """Return the name of a run in trackers that find runs by their name."""
    return f"{identity.name}-{identity.id}"
