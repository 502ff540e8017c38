"""A training that resumes from its last complete checkpoint, and that SIGINT ends with another one."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from transformers import Trainer

from tokenuq_ml.disk import DiskFull, disk_errors
from tokenuq_ml.progress import Reporter
from tokenuq_ml.tracking.callback import TrackingCallback
from tokenuq_ml.training.checkpoints import (
    CheckpointCallback,
    StepRows,
    damaged_checkpoints,
    latest_checkpoint,
    remove_incomplete,
)


class ResumableRecorder(Protocol):
    """What is recorded of steps, and restored from a checkpoint."""

    gather: Callable[[list], list]

    @property
    def last_step(self) -> int:
        """The last step that was recorded."""

    def load(self, folder: Path) -> None:
        """Replace what was recorded by what a checkpoint holds."""


def tracking_callbacks(tracking: TrackingCallback | None, recorder: StepRows) -> list[TrackingCallback]:
    """Return the callback that reports the recorder's rows to trackers, to be called after the one that records."""
    if tracking is None:
        return []
    tracking.recorder = recorder
    return [tracking]


def train_resumed(
    trainer: Trainer,
    checkpoints: CheckpointCallback,
    recorder: ResumableRecorder,
    steps: int,
    reporter: Reporter,
    name: str,
) -> None:
    """Train to the last step, from the last complete checkpoint if there is one.

    Args:
        trainer: with `checkpoints` among its callbacks.
        checkpoints: writes them into its `work_dir`.
        recorder: is loaded from the checkpoint.
        steps: of the complete training.
        reporter: gets progress messages.
        name: the start of each message.

    Raises:
        KeyboardInterrupt: SIGINT was received. A checkpoint holds the state, and the next call resumes from it.
    """
    work_dir = checkpoints.work_dir
    for sentence in damaged_checkpoints(work_dir):
        reporter.info(f"{name}: {sentence}")
    # Rank 0 decides, and deletes once every rank has looked.
    checkpoint = recorder.gather([latest_checkpoint(work_dir)])[0]
    if checkpoint is not None:
        recorder.load(checkpoint)
        reporter.info(f"{name}: resuming from step {recorder.last_step} of {steps}")
    if trainer.is_world_process_zero():
        remove_incomplete(work_dir)
    try:
        with checkpoints.graceful_stop(), disk_errors(work_dir):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except DiskFull:
        # Its space is needed by whatever comes next.
        remove_incomplete(work_dir)
        raise
    if checkpoints.stop_requested and trainer.state.global_step < steps:
        raise KeyboardInterrupt(
            f"{name}: stopped at step {trainer.state.global_step} of {steps}; a checkpoint holds the state"
        )
