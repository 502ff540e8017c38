"""A training that is killed or interrupted resumes from its last complete checkpoint with the same result."""

import os
import signal
from functools import cache

import polars as pl
import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_peft
from tests.support.training import MLE, assert_same_adapter, kill_training, setup_with_teacher, training_setup
from tokenuq_ml.training import checkpoints
from tokenuq_ml.training.checkpoints import MARKER, damaged_checkpoints, latest_checkpoint, remove_incomplete
from tokenuq_ml.training.recorder import StepRecorder
from tokenuq_ml.training.trainer import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def train_uninterrupted(tmp_path_factory):
    """Return a function from the size of micro-batches to the adapter and the recorder of a complete training."""

    @cache
    def train_with(micro: int):
        model, folder = tiny_peft(dropout=0.2), tmp_path_factory.mktemp("uninterrupted")
        return model, train(model, training_setup(micro=micro, save_steps=1), folder, RecordingReporter(), "x")

    return train_with


@pytest.mark.parametrize("micro", [4, 2])
@pytest.mark.parametrize("die_at", [2, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 5))])
def test_a_training_resumed_after_a_kill_gives_the_same_adapter_and_tables(
    micro, die_at, train_uninterrupted, tmp_path
):
    """Trap 13. With dropout, killed within an epoch and at an epoch's end."""
    uninterrupted, expected = train_uninterrupted(micro)
    kill_training(die_at, tiny_peft(dropout=0.2), training_setup(micro=micro, save_steps=1), tmp_path / "b")
    torch.manual_seed(99)
    resumed = tiny_peft(dropout=0.2)
    reporter = RecordingReporter()
    got = train(resumed, training_setup(micro=micro, save_steps=1), tmp_path / "b", reporter, "x")
    assert any("resuming from step" in line for line in reporter.lines)
    assert_same_adapter(resumed, uninterrupted)
    assert got.training_log().equals(expected.training_log())
    assert got.selections().equals(expected.selections())


def test_a_finished_training_takes_no_further_step(tmp_path):
    """The process was killed after its last checkpoint and before the adapter was published."""
    first, again = tiny_peft(dropout=0.2), tiny_peft(dropout=0.2)
    expected = train(first, training_setup(), tmp_path, RecordingReporter(), "x")
    got = train(again, training_setup(), tmp_path, RecordingReporter(), "x")
    assert got.costs is None
    assert got.training_log().equals(expected.training_log()) and got.selections().equals(expected.selections())
    assert_same_adapter(again, first)


def test_a_training_with_an_online_teacher_resumes_and_its_snapshots_hold_only_the_student(tmp_path):
    tiny_peft(seed=5).save_pretrained(tmp_path)
    uninterrupted, setup = setup_with_teacher(tmp_path, "online", dropout=0.2)
    expected = train(uninterrupted, setup, tmp_path / "a", RecordingReporter(), "x")
    killed, setup = setup_with_teacher(tmp_path, "online", dropout=0.2)
    kill_training(4, killed, setup, tmp_path / "b")
    resumed, setup = setup_with_teacher(tmp_path, "online", dropout=0.2)
    got = train(resumed, setup, tmp_path / "b", RecordingReporter(), "x")
    assert got.training_log().equals(expected.training_log())
    assert_same_adapter(resumed, uninterrupted)
    (snapshot,) = (tmp_path / "b" / "snapshots").iterdir()
    assert not (snapshot / "teacher").exists() and (snapshot / "adapter_model.safetensors").exists()


def test_the_latest_checkpoint_is_the_last_one_with_a_marker(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / MARKER).touch()
    (tmp_path / "checkpoint-12").mkdir()
    assert latest_checkpoint(tmp_path).name == "checkpoint-4"
    assert latest_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "damaged", ["checkpoint-4/optimizer.pt", "snapshots/step-2/adapter", f"checkpoint-4/{MARKER}", "missing"]
)
def test_training_does_not_resume_from_a_damaged_checkpoint(tmp_path, damaged):
    for path in ("checkpoint-4/optimizer.pt", "checkpoint-4/adapter", "snapshots/step-2/adapter"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    folder = tmp_path / "checkpoint-4"
    (folder / MARKER).write_bytes(checkpoints._marker_content(tmp_path, folder))
    assert latest_checkpoint(tmp_path) == folder and damaged_checkpoints(tmp_path) == []
    if damaged == "missing":
        (folder / "adapter").unlink()
    else:
        path = tmp_path / damaged
        path.write_bytes(b"x" * path.stat().st_size)
    assert latest_checkpoint(tmp_path) is None
    (sentence,) = damaged_checkpoints(tmp_path)
    assert sentence.startswith(f"{folder} is not resumed from: ")
    remove_incomplete(tmp_path)
    assert not folder.exists()


def test_sigint_stops_after_the_step_with_a_checkpoint(tmp_path, monkeypatch):
    end_step = StepRecorder.end_step

    def interrupt_at_step_3(self, *args):
        row = end_step(self, *args)
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return row

    monkeypatch.setattr(StepRecorder, "end_step", interrupt_at_step_3)
    with pytest.raises(KeyboardInterrupt, match="a checkpoint holds the state"):
        train(tiny_peft(), training_setup(epochs=20), tmp_path, RecordingReporter(), "x")
    checkpoint = latest_checkpoint(tmp_path)
    step = int(checkpoint.name.split("-")[1])
    assert step in (3, 4)
    assert len(pl.read_parquet(checkpoint / "training_log.parquet")) == step


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_sigint_stops_a_stage_of_one_process_only(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "world_size", lambda: processes)
    callback = checkpoints.CheckpointCallback(StepRecorder(MLE), training_setup(), tmp_path, RecordingReporter(), "x")
    before, interrupted = signal.getsignal(signal.SIGINT), False
    try:
        with callback.graceful_stop():
            os.kill(os.getpid(), signal.SIGINT)
            assert callback.stop_requested
            os.kill(os.getpid(), signal.SIGINT)
        # The checkpoint is there, and the process ends.
        if processes == 2:
            os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupted == (processes == 1)


def test_snapshots_are_written_within_training_but_not_at_its_ends(tmp_path):
    setup = training_setup(snapshot_fractions=(0.0, 0.25, 0.5, 1.0))
    train(tiny_peft(), setup, tmp_path, RecordingReporter(), "x")
    assert sorted(p.name for p in (tmp_path / "snapshots").iterdir()) == ["step-000002", "step-000003"]
