"""Trainings in MLflow's SQLite store and in TensorBoard's files, read back by their own libraries."""

import shutil

import pytest

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tests.support.tracked import (
    EVALUATION_TAGS,
    TAGS,
    event_scalars,
    mlflow_client,
    mlflow_runs,
    no_tracker_variables,
    request_for,
    tracked_training,
    tracking_of,
)
from tests.support.training import assert_same_adapter, kill_training, training_setup
from tokenuq_ml.config.pretraining import PretrainingSpec
from tokenuq_ml.tracking.callback import TrackingCallback, mirror_figures
from tokenuq_ml.tracking.request import RUN
from tokenuq_ml.training.pretraining import pretrain
from tokenuq_ml.training.trainer import train

pytestmark = pytest.mark.slow
pytest.importorskip("mlflow", reason="needs mlflow, which make .venv/.dev installs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(scope="module")
def resumed(folder):
    """Kill a training at step 5, resume it from its checkpoint of step 4, and return the resumed one.

    As on another machine, only the checkpoint says which run the training has.
    """
    request = request_for(folder, "tensorboard", "mlflow")
    with pytest.MonkeyPatch.context() as patch, no_tracker_variables(patch):
        # A killed process closes nothing.
        patch.setattr(TrackingCallback, "__exit__", lambda *args: None)
        tracking = tracking_of(request, folder / "work")
        kill_training(5, tiny_peft(), training_setup(save_steps=2), folder / "work", tracking)
    (folder / "work" / "tracking.json").unlink()
    with pytest.MonkeyPatch.context() as patch, no_tracker_variables(patch):
        return tracked_training(request, folder / "work")


@pytest.fixture(scope="module")
def evaluated(resumed, folder):
    request, warnings = request_for(folder, "tensorboard", "mlflow"), []
    figures = {"sums_loss": 1.5, "sums_accuracy": 0.25, "note": "text", "missing": None}
    return mirror_figures(request, "evaluation", figures, resumed.tracking.run, warnings.append), warnings


def losses(recorder):
    return [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in recorder.log_rows]


def test_mlflow_has_one_run_with_every_step_once(resumed, folder):
    (run,) = mlflow_runs(folder)
    history = mlflow_client(folder).get_metric_history(run.info.run_id, "loss")
    assert [(value.step, value.value) for value in history] == losses(resumed.recorder)
    assert run.info.run_name == "paper/student" and run.data.params["learning_rate"] == "0.01"
    assert run.info.run_id in resumed.tracking.figures["mlflow_run"]


def test_what_the_objective_records_is_reported_too(resumed, folder):
    (run,) = mlflow_runs(folder)
    last = resumed.recorder.log_rows[-1]
    for name in ("selected_share", "mle_loss", "distill_loss", "tokens"):
        assert run.data.metrics[name] == pytest.approx(last[name])


def test_tensorboard_shows_every_step_once(resumed):
    shown = event_scalars(resumed.tracking.figures["tensorboard_run"])["train/loss"]
    assert shown == losses(resumed.recorder)


def test_the_run_has_the_tags(resumed, folder):
    (run,) = mlflow_runs(folder)
    expected = {f"tokenuq.{name}": value for name, value in TAGS.items()} | {"tokenuq.run": resumed.tracking.run.id}
    assert {name: value for name, value in run.data.tags.items() if name in expected} == expected


def test_an_evaluation_is_added_to_the_run_of_its_training(evaluated, resumed, folder):
    found, warnings = evaluated
    assert warnings == [] and found[RUN] == resumed.tracking.run.id
    (run,) = mlflow_runs(folder)
    assert {key: value for key, value in run.data.metrics.items() if key.startswith("eval_")} == {
        "eval_sums_loss": 1.5,
        "eval_sums_accuracy": 0.25,
    }
    assert run.info.status == "FINISHED"
    assert run.data.tags["tokenuq.evaluation.code_version"] == EVALUATION_TAGS["code_version"]
    assert run.data.tags["tokenuq.code_version"] == TAGS["code_version"]


def test_an_evaluation_is_in_the_event_files_of_its_training(evaluated, resumed):
    shown = event_scalars(evaluated[0]["tensorboard_run"])
    assert shown["eval/sums_loss"] == [(6, 1.5)] and shown["train/loss"] == losses(resumed.recorder)


def test_a_training_that_is_repeated_begins_another_run(tmp_path):
    request = request_for(tmp_path, "tensorboard")
    first = tracked_training(request, tmp_path / "work").tracking
    first.forget()
    for checkpoint in (tmp_path / "work").glob("checkpoint-*"):
        checkpoint.rename(tmp_path / checkpoint.name)
    second, recorder, _ = tracked_training(request, tmp_path / "work")
    assert first.run.id != second.run.id
    assert event_scalars(second.figures["tensorboard_run"])["train/loss"] == losses(recorder)


def test_a_server_that_is_down_changes_nothing_and_is_said_once(tmp_path, monkeypatch):
    warnings, request = [], request_for(tmp_path, "mlflow")
    with no_tracker_variables(monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        tracking, recorder, _ = tracked_training(request, tmp_path / "work", warnings)
    assert len(recorder.log_rows) == 6
    (warning,) = warnings
    assert "mlflow is not reported to: " in warning and "127.0.0.1" in warning
    assert "mlflow_run" not in tracking.figures and "127.0.0.1" in tracking.figures["mlflow_failure"]


def test_a_database_that_breaks_in_between_is_noticed(resumed, folder, tmp_path, monkeypatch):
    """MLflow's own asynchronous logging would lose the rows without a word."""
    database = tmp_path / "tracking" / "mlflow.db"
    database.parent.mkdir()
    # Its tables take seconds to make.
    shutil.copy(folder / "tracking" / "mlflow.db", database)
    on_log = TrackingCallback.on_log

    def break_it(self, args, state, control, **kwargs):
        if state.global_step == 3:
            database.write_bytes(b"no database any more" * 100)
        on_log(self, args, state, control, **kwargs)

    with no_tracker_variables(monkeypatch):
        monkeypatch.setattr(TrackingCallback, "on_log", break_it)
        warnings = []
        tracking, recorder, _ = tracked_training(request_for(tmp_path, "mlflow"), tmp_path / "work", warnings)
    assert len(recorder.log_rows) == 6 and len(warnings) == 1
    assert "mlflow_failure" in tracking.figures and "mlflow_run" in tracking.figures


def test_tracking_does_not_change_a_training(resumed, tmp_path):
    untracked = tiny_peft()
    recorder = train(untracked, training_setup(save_steps=2), tmp_path, RecordingReporter(), "x")
    assert recorder.training_log().equals(resumed.recorder.training_log())
    assert_same_adapter(resumed.model, untracked)


def test_the_training_of_a_model_from_scratch_is_reported(tmp_path):
    work, reporter = tmp_path / "work", RecordingReporter()
    tracking = tracking_of(request_for(tmp_path, "tensorboard"), work)
    spec = PretrainingSpec(steps=3, batch_size=4)
    log = pretrain(tiny_model().requires_grad_(True), examples(8), spec, FLOAT32, work, reporter, "models/x", tracking)
    shown = event_scalars(tracking.figures["tensorboard_run"])["train/loss"]
    assert shown == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in log.log_rows] and len(shown) == 3
