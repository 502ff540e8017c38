"""Full disks in the middle of the work: nothing half written stays, and with space it goes on from the checkpoint."""

import os
import subprocess

import pytest

from tests.support.disks import small_disk
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import examples, tiny_peft
from tests.support.training import assert_same_adapter, training_setup
from tokenuq_ml import disk
from tokenuq_ml.disk import DiskFull
from tokenuq_ml.disk_space import Space, folder_size
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.training.checkpoints import latest_checkpoint
from tokenuq_ml.training.teacher_cache import TeacherCache
from tokenuq_ml.training.trainer import train


@pytest.mark.slow
def test_a_training_on_a_full_disk_goes_on_from_its_checkpoint_when_there_is_space(tmp_path):
    expected = tiny_peft(dropout=0.2)
    train(expected, training_setup(save_steps=1), tmp_path / "calm", RecordingReporter(), "x")
    kib = folder_size(latest_checkpoint(tmp_path / "calm")) * 3 // 2 // 1024
    with small_disk(tmp_path / "disk", kib) as folder:
        # A checkpoint fits, and the next one next to it does not.
        with pytest.raises(DiskFull, match=rf"the disk at {folder} is full: ") as error:
            train(tiny_peft(dropout=0.2), training_setup(save_steps=1), folder, RecordingReporter(), "x")
        assert "run the same command again" in str(error.value)
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
        assert latest_checkpoint(folder) == folder / "checkpoint-1"
        subprocess.run(["mount", "-o", f"remount,size={4 * kib}k", folder], check=True)
        again, reporter = tiny_peft(dropout=0.2), RecordingReporter()
        train(again, training_setup(save_steps=1), folder, reporter, "x")
        assert any("resuming from step 1 of" in line for line in reporter.lines)
        assert_same_adapter(again, expected)


def test_the_teachers_cache_is_refused_before_its_hours(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "space", lambda path: Space(tmp_path, tmp_path, 10**9, 100, None))
    with pytest.raises(
        DiskFull, match="the cache of the teacher's states needs .* kB, and 100 bytes of 1.0 GB are free"
    ):
        TeacherCache(tmp_path, examples(5), head_of(tiny_peft()), dataset_digest="d", teacher_digest="t")
    assert os.listdir(tmp_path) == []
