"""The trackers of a stage: refused before a training, a warning after an evaluation, and rank 0 alone."""

import pytest

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32
from tokenuq_ml import process_group
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.stages.tracked_stage import mirrored, require_trackers, tracked_training
from tokenuq_ml.tracking.request import TrackingRequest


def request_of(stage, *trackers) -> StageRequest:
    tracking = TrackingRequest(report_to=trackers, project="s", tags={stage: {"asset": f"s/mle/{stage}"}})
    return StageRequest(
        entrypoint="train_student",
        study="s",
        ablation="mle",
        assets={stage: AssetRequest(fields={}, code_version="1-x", outputs={})},
        inputs={},
        work_dir="w",
        tracking=tracking if trackers else None,
    )


def context_of(stage, *trackers):
    return StageContext(stage, request_of(stage, *trackers), RecordingReporter(), FLOAT32)


@pytest.fixture
def without_packages(monkeypatch):
    monkeypatch.setattr("tokenuq_ml.tracking.availability.is_installed", lambda package: False)


def test_a_training_is_refused_without_the_package(without_packages):
    with pytest.raises(InputError, match="`report_to` names wandb.*pip install wandb"):
        require_trackers(request_of("student", "wandb"))
    require_trackers(request_of("student"))


def test_an_evaluation_is_not(without_packages):
    context = context_of("evaluation", "wandb")
    assert mirrored(context, {"loss": 1.0}) == {}
    (line,) = context.reporter.lines
    assert "s/mle/evaluation: its figures are reported to no tracker" in line and "pip install wandb" in line


def test_nothing_is_reported_without_trackers_or_by_other_ranks(monkeypatch, tmp_path):
    assert tracked_training(context_of("student"), tmp_path) is None
    assert mirrored(context_of("evaluation"), {"loss": 1.0}) == {}
    assert tracked_training(context_of("student", "wandb"), tmp_path) is not None
    monkeypatch.setattr(process_group, "is_main", lambda: False)
    assert tracked_training(context_of("student", "wandb"), tmp_path) is None


def test_a_request_with_trackers_is_written_and_read_back(tmp_path):
    request = request_of("student", "mlflow", "tensorboard")
    request.write(tmp_path / "request.json")
    assert StageRequest.read(tmp_path / "request.json") == request
