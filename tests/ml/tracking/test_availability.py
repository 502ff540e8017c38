"""Trackers that cannot be used are named before a training, with the remedy; no others are used."""

import sys

import pytest

from tests.support.tiny_models import tiny_peft
from tests.support.training import MLE, training_setup
from tokenuq_ml.config import StudySpec
from tokenuq_ml.tracking.availability import is_installed, tracker_problems
from tokenuq_ml.training.recorder import StepRecorder
from tokenuq_ml.training.setup import training_arguments
from tokenuq_ml.training.trainer import TokenTrainer

STUDY = {"name": "s", "model": "m", "dataset": "d", "ablations": ["mle"]}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Return a function that makes empty packages, the only ones of their names that can be found."""

    def make(*names):
        for name in names:
            monkeypatch.delitem(sys.modules, name, raising=False)
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)

    return make


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = tracker_problems(["wandb"], True, {})
    assert "names wandb" in problem and "pip install wandb" in problem and "tokenuq[tracking]" in problem
    assert list(tracker_problems(["wandb"], True, {}, looks_for_packages=False)) == []


def test_a_folder_of_runs_is_no_package(tmp_path, monkeypatch):
    """W&B writes `wandb/` into the working directory, which Python takes for a namespace package."""
    (tmp_path / "wandb_like").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("wandb_like")


def test_what_has_no_place_to_write_is_named_with_its_variable(packages):
    packages("tensorboard", "mlflow", "wandb", "trackio")
    every = ("tensorboard", "mlflow", "wandb", "trackio")
    problems = list(tracker_problems(every, False, {}))
    assert len(problems) == 2
    assert "TENSORBOARD_LOGGING_DIR" in problems[0] and "MLFLOW_TRACKING_URI" in problems[1]
    places = {"TENSORBOARD_LOGGING_DIR": "s3://b/runs", "MLFLOW_TRACKING_URI": "http://h"}
    assert list(tracker_problems(every, False, places)) == list(tracker_problems(every, True, {})) == []


def test_a_tracker_that_is_switched_off_is_refused(packages):
    packages("mlflow")
    (problem,) = tracker_problems(["mlflow"], True, {"DISABLE_MLFLOW_INTEGRATION": "true"})
    assert "DISABLE_MLFLOW_INTEGRATION" in problem


def test_no_tracker_is_added_that_is_not_named(monkeypatch, tmp_path):
    """transformers adds Kubeflow's to an empty list; earlier versions add all that are installed."""
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "http://127.0.0.1:9")
    setup = training_setup(MLE)
    arguments = training_arguments(setup, tmp_path)
    assert arguments.report_to == []
    trainer = TokenTrainer(tiny_peft(), setup, StepRecorder(MLE), args=arguments)
    modules = {type(callback).__module__ for callback in trainer.callback_handler.callbacks}
    assert not [module for module in modules if "integration" in module or "tracking" in module]


def test_a_study_names_trackers_without_a_change_of_its_fields():
    plain, tracked = StudySpec(**STUDY), StudySpec(**STUDY, report_to="mlflow")
    assert tracked.report_to == ("mlflow",) and plain.fields() == StudySpec(**STUDY, report_to=[]).fields()
    assert "report_to" not in plain.fields()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["all"], "unknown tracker 'all'; allowed: tensorboard, mlflow, wandb, trackio"),
        (["mlflow", "mlflow"], "names a tracker twice"),
    ],
)
def test_other_names_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        StudySpec(**STUDY, report_to=value)
