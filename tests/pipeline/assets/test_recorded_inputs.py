"""Stages are told what the manifests recorded of their inputs, and refuse anything else, without a retry."""

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, fake_environment, toy_config
from tokenuq_pipeline.assets.graph import stage_groups
from tokenuq_pipeline.assets.recorded_inputs import recorded_inputs
from tokenuq_pipeline.runtime.launcher import StageLauncher

pytestmark = pytest.mark.slow


def assets_of(op):
    return next(group.assets for group in stage_groups(toy_config()) if group.op == op)


def test_every_input_that_the_child_does_not_make_is_recorded(made_study):
    store = made_study.store
    recorded = recorded_inputs(store, assets_of("study__top__student"))
    tables = {"token_losses", "tokenized_dataset"}
    # Its own adapter, snapshots and selections are made by the child itself.
    assert {"model", "teacher", "teacher_hidden", *tables} <= set(recorded)
    assert not {"adapter", "snapshots", "selections"} & set(recorded)
    for name in tables:
        (file,) = [entry for entry in store.read_manifest(f"{STUDY}/{name}").files if entry.path.startswith(name)]
        found = recorded[name]
        assert found.asset == f"{STUDY}/{name}" and set(found.files) == {"part-0.parquet"}
        assert found.files["part-0.parquet"].sha256 == file.sha256 and found.files["part-0.parquet"].bytes == file.bytes
    evaluation = recorded_inputs(store, assets_of("study__top__student")[1:])
    assert {"adapter", "selections"} <= set(evaluation) and evaluation["adapter"].asset == f"{STUDY}/top/student"


def test_weights_that_a_stage_does_not_read_are_not_hashed_for_it(made_study):
    for op, hashed in (("study__tokenized_dataset", False), ("study__baseline_teacher", True)):
        (asset,) = assets_of(op)
        model = next(item for item in asset.inputs if item.name == "model")
        assert ("*.safetensors" in model.not_read) is not hashed
    assert recorded_inputs(made_study.store, assets_of("study__tokenized_dataset"))["model"].files


@pytest.mark.parametrize("damage", ["table", "manifest"])
def test_a_damaged_input_fails_the_run_in_one_sentence(made_study, tmp_path, monkeypatch, damage):
    for name, value in fake_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    toy = made_study.copy(tmp_path / "toy")
    path = toy.store.path("tokenized_dataset/study=study/part-0.parquet")
    if damage == "manifest":
        path = toy.store.home / ".manifests/study/tokenized_dataset.json"
    path.write_bytes(b"x" * path.stat().st_size)
    with toy.instance() as instance:
        job = toy.defs(launcher=StageLauncher(package="fake_entrypoints")).resolve_job_def(STUDY)
        result = job.execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey([STUDY, "top", "student"])], raise_on_error=False
        )
        events = [event for event in result.all_events if event.step_key == "study__top__student"]
    assert not result.success and not [event for event in events if event.event_type_value == "STEP_UP_FOR_RETRY"]
    (failure,) = [event for event in events if event.event_type_value == "STEP_FAILURE"]
    said = failure.step_failure_data.user_failure_data.description
    assert f"{path}: {'is not JSON' if damage == 'manifest' else 'its SHA-256 begins with'}" in said
    assert "`tokenuq verify --forget`" in said and "\n" not in said
    assert toy.store.is_complete(f"{STUDY}/top/student")
