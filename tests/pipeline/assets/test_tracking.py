"""What the graph tells stages of trackers: names, tags, the run of what they evaluate; and what the UI shows."""

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tracking.request import TrackedRun, TrackingRequest
from tokenuq_pipeline.assets.graph import stage_groups
from tokenuq_pipeline.assets.tracking import is_run, shown_run, tracking_request
from tokenuq_pipeline.runtime.launchers.job_environment import job_environment
from tokenuq_pipeline.runtime.store import Store


def groups(**study):
    return {group.op: group for group in stage_groups(toy_config(**study))}


def test_the_study_names_trackers_and_no_version_changes():
    plain, tracked = groups(), groups(report_to=["mlflow"])
    assert {group.report_to for group in plain.values()} == {()}
    assert {group.report_to for group in tracked.values() if group.assets[0].study} == {("mlflow",)}
    versions = [[asset.code_version for group in own.values() for asset in group.assets] for own in (plain, tracked)]
    assert versions[0] == versions[1]


@pytest.fixture
def student():
    return next(group for op, group in groups().items() if op.endswith("__mle__student"))


def requested(group, store, *stages, report_to=("mlflow",), entrypoint="train_student"):
    """Return what a child is told that makes some stages of a group."""
    wanted = {asset.stage: asset for asset in group.assets if asset.stage in stages}
    read = {stage: {f"{STUDY}/tokenized_dataset": "d1", "files/x": None} for stage in wanted}
    request = StageRequest(entrypoint=entrypoint, study=STUDY, ablation="mle", assets={}, inputs={}, work_dir="w")
    return tracking_request(store, report_to, wanted, request, read, "run-1")


def test_a_run_has_the_tags_of_its_asset(student, tmp_path):
    told = requested(student, Store(tmp_path), "student", "evaluation", "curriculum")
    asset = student.assets[0]
    assert set(told.tags) == {"student", "evaluation"} and told.evaluated is None
    tags = told.tags["student"]
    assert tags["study"] == STUDY and tags["ablation"] == "mle" and tags["asset"] == f"{STUDY}/mle/student"
    assert tags["code_version"] == asset.code_version and asset.code_version.endswith(tags["spec_hash"])
    assert tags[f"data_version.{STUDY}/tokenized_dataset"] == "d1" and tags["dagster_run"] == "run-1"
    assert "data_version.files/x" not in tags and tags["version"]
    assert told.folder == str(tmp_path / "tracking") and told.run_name("student") == "mle/student"


def test_nothing_is_told_without_trackers_or_to_other_stages(student, tmp_path):
    assert requested(student, Store(tmp_path), "student", report_to=()) is None
    assert requested(student, Store(tmp_path), "curriculum") is None


class Manifests:
    """A store with the figures of some assets."""

    def __init__(self, folder, **figures):
        self.store, self.figures = Store(folder), figures

    def path(self, relative):
        return self.store.path(relative)

    def read_manifest(self, name):
        found = self.figures.get(name.replace("/", "__"))
        return None if found is None else type("Manifest", (), {"metrics": found})


def test_an_evaluation_alone_is_told_the_run_of_its_student(student, tmp_path):
    trained = {f"{STUDY}__mle__student": {"tracking_run": "abc", "steps": 12}}
    told = requested(student, Manifests(tmp_path, **trained), "evaluation")
    assert told.evaluated == TrackedRun(id="abc", name="mle/student", step=12)
    untracked = Manifests(tmp_path, **{f"{STUDY}__mle__student": {"steps": 12}})
    assert requested(student, untracked, "evaluation").evaluated is None


def test_a_reference_evaluation_is_told_the_run_of_the_chosen_teacher(tmp_path):
    measure = groups()[f"{STUDY}__measure"]
    figures = {
        f"{STUDY}__baseline_teacher": {"candidate": "teacher_lr0p1", "steps": 3},
        f"{STUDY}__teacher_lr0p1__candidate_teacher": {"tracking_run": "abc", "steps": 3},
    }
    store = Manifests(tmp_path, **figures)
    told = requested(measure, store, "reference_evaluation", "token_losses", entrypoint="score_teacher")
    assert told.evaluated == TrackedRun(id="abc", name="teacher_lr0p1/candidate_teacher", step=3)
    assert set(told.tags) == {"reference_evaluation"}


def test_the_ui_links_what_is_a_page():
    assert shown_run("https://h/#/experiments/1/runs/2") == dg.MetadataValue.url("https://h/#/experiments/1/runs/2")
    assert shown_run("/store/tracking/tensorboard/s") == dg.MetadataValue.path("/store/tracking/tensorboard/s")
    assert shown_run("sqlite:///x.db run 2") == "sqlite:///x.db run 2"
    assert is_run("mlflow_run") and not is_run("tracking_run") and not is_run("test_run")


def test_a_stage_on_a_cluster_gets_the_variables_of_its_trackers_only():
    environment = {"MLFLOW_TRACKING_TOKEN": "t", "WANDB_API_KEY": "k", "TENSORBOARD_LOGGING_DIR": "d"}
    asset = AssetRequest(fields={}, code_version="1-x", outputs={})
    request = StageRequest(entrypoint="train_student", assets={"student": asset}, inputs={}, work_dir="w")
    assert not environment.keys() & job_environment(request, environment).keys()
    request.tracking = TrackingRequest(report_to=("mlflow",), project="s", tags={})
    assert environment.keys() & job_environment(request, environment).keys() == {"MLFLOW_TRACKING_TOKEN"}
