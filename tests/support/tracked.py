"""Trainings that report to trackers, and what the trackers have of them, read by the trackers' own libraries."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_peft
from tests.support.training import kill_training, training_setup
from tokenuq_ml.tracking.callback import TrackingCallback, mirror_figures
from tokenuq_ml.tracking.request import TrackingRequest
from tokenuq_ml.training.recorder import StepRecorder
from tokenuq_ml.training.trainer import train

TAGS = {"asset": "s/paper/student", "study": "s", "code_version": "3-abc", "data_version.s/tokenized_dataset": "d1"}
EVALUATION_TAGS = {"asset": "s/paper/evaluation", "code_version": "8-def"}
BEGINNINGS = ("MLFLOW_", "TENSORBOARD_", "WANDB_", "TRACKIO_")


class Tracked(NamedTuple):
    """A training that has reported to trackers."""

    tracking: TrackingCallback
    recorder: StepRecorder
    model: PeftModel


@contextmanager
def no_tracker_variables(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let trackers write where they do in a stage's process that has no variables of theirs."""
    for name in list(os.environ):
        if name.startswith(BEGINNINGS):
            patch.delenv(name)
    _forget_address()
    yield
    _forget_address()


def _forget_address() -> None:
    """Let MLflow forget where it writes; it sets its environment variable too."""
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


def request_for(folder, *trackers) -> TrackingRequest:
    """Return a request of trackers that write into a folder."""
    tags = {"student": TAGS, "evaluation": EVALUATION_TAGS}
    return TrackingRequest(report_to=trackers, project="s", folder=str(folder / "tracking"), tags=tags)


def tracking_of(request, work_dir, warnings=None) -> TrackingCallback:
    """Return the callback of a training in `work_dir`; sentences about failures are appended to `warnings`."""
    work_dir.mkdir(parents=True, exist_ok=True)
    return TrackingCallback(request, "student", work_dir, (warnings if warnings is not None else []).append)


def tracked_training(request, work_dir, warnings=None) -> Tracked:
    """Train a tiny model for six steps."""
    tracking, model = tracking_of(request, work_dir, warnings), tiny_peft()
    recorder = train(model, training_setup(save_steps=2), work_dir, RecordingReporter(), "x", tracking)
    return Tracked(tracking, recorder, model)


def resumed_and_evaluated(tracker, folder) -> tuple[TrackingCallback, list[str]]:
    """Kill a training at step 5, resume it, and add an evaluation; return the callback and the warnings."""
    request, warnings = request_for(folder, tracker), []
    first = tracking_of(request, folder / "work", warnings)
    kill_training(5, tiny_peft(), training_setup(save_steps=2), folder / "work", first)
    tracking = tracked_training(request, folder / "work", warnings).tracking
    mirror_figures(request, "evaluation", {"sums_loss": 1.5}, tracking.run, warnings.append)
    return tracking, warnings


def mlflow_client(folder):
    """Return a client of the database in a folder, independent of the process's own settings."""
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: make .venv/.dev installs it")
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/tracking/mlflow.db")


def mlflow_runs(folder) -> list:
    """Return all runs of the database in a folder."""
    client = mlflow_client(folder)
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def event_scalars(run_folder) -> dict[str, list[tuple[int, float]]]:
    """Return tag -> (step, value) of all event files of a run, as TensorBoard shows them."""
    events = EventAccumulator(str(run_folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
