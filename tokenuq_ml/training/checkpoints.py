"""Checkpoints, adapter snapshots, progress messages, and a clean stop on SIGINT.

A checkpoint is complete when its marker exists, which is written last. It holds the logs up to its step. The marker
lists the SHA-256 of the files that training resumes from: one that has changed since is not resumed from.
"""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from transformers import TrainerCallback

from tokenuq_ml.atomic_files import atomic_write, fsync_tree, replace_folder
from tokenuq_ml.file_hashes import sha256_of
from tokenuq_ml.models.adapters import save_adapter
from tokenuq_ml.process_group import world_size
from tokenuq_ml.progress import Reporter, progress_line

MARKER = "COMPLETE"


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the last complete checkpoint; None if there is none. Incomplete ones have no marker and are ignored.

    So are damaged ones. `damaged_checkpoints` names them.
    """
    complete = [path.parent for path in Path(work_dir).glob(f"checkpoint-*/{MARKER}") if _damage(path) is None]
    return max(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def damaged_checkpoints(work_dir: str | Path) -> list[str]:
    """Return a sentence for each complete checkpoint whose files differ from what its marker lists."""
    markers = sorted(Path(work_dir).glob(f"checkpoint-*/{MARKER}"))
    return [sentence for marker in markers if (sentence := _damage(marker)) is not None]


def _damage(marker: Path) -> str | None:
    """Return which file of a checkpoint, or of the snapshots before it, is not as its marker lists it."""
    work_dir = marker.parent.parent
    try:
        # Markers of earlier versions are empty.
        listed = json.loads(marker.read_bytes() or b"{}")
        changed = [path for path, digest in listed.items() if sha256_of(work_dir / path) != digest]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        return f"{marker.parent} is not resumed from: {error}"
    return f"{marker.parent} is not resumed from: {work_dir / changed[0]} has changed" if changed else None


def _marker_content(work_dir: Path, folder: Path) -> bytes:
    """Return the SHA-256 of all files of a checkpoint and of the snapshots so far, as JSON."""
    found = [path for root in (folder, work_dir / "snapshots") for path in root.rglob("*") if path.is_file()]
    return json.dumps({path.relative_to(work_dir).as_posix(): sha256_of(path) for path in sorted(found)}).encode()


def remove_incomplete(work_dir: str | Path) -> None:
    """Delete what a checkpoint or snapshot holds that was not completed, as after a kill or on a full disk.

    Damaged checkpoints too.
    """
    for folder in Path(work_dir).glob("checkpoint-*"):
        if not (folder / MARKER).exists() or _damage(folder / MARKER) is not None:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in Path(work_dir, "snapshots").glob(".*.writing"):
        shutil.rmtree(folder, ignore_errors=True)


class StepRows(Protocol):
    """What is recorded of each step."""

    gather: Callable[[list], list]
    log_rows: list[dict]
    """A row per step: `step`, `loss`, `tokens`, and what else is recorded."""

    def end_step(self, learning_rate: float, grad_norm: float) -> dict:
        """Add the step's row, and return it."""

    def save(self, folder: Path) -> None:
        """Write the rows to a checkpoint."""


class Steps(Protocol):
    """How long a training takes, and when snapshots are due."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""

    @property
    def snapshot_fractions(self) -> tuple[float, ...]:
        """Shares of training, in (0, 1), after which a snapshot is written."""


class CheckpointCallback(TrainerCallback):
    """Trainer callback that completes checkpoints, writes snapshots, reports progress, and stops on SIGINT.

    Args:
        recorder: its rows go into each checkpoint.
        setup: steps, and the shares of training at which snapshots are written.
        work_dir: where the Trainer writes checkpoints; snapshots go to its folder `snapshots`.
        reporter: gets progress messages.
        name: the start of each message.
    """

    MESSAGE_INTERVAL_S = 5.0

    def __init__(self, recorder: StepRows, setup: Steps, work_dir: Path, reporter: Reporter, name: str):
        self.recorder, self.setup, self.work_dir = recorder, setup, work_dir
        self.reporter, self.name = reporter, name
        self.stop_requested = False
        self.learning_rate = 0.0
        self.started = self.last_message = time.monotonic()
        self.first_step = None
        self.snapshot_steps = {round(f * setup.steps) for f in setup.snapshot_fractions} - {0, setup.steps}

    @contextmanager
    def graceful_stop(self) -> Iterator[None]:
        """Inside, SIGINT requests a checkpoint and a stop after the current step; a second SIGINT stops at once.

        In one of several processes a second one changes nothing: each may be interrupted by torchrun and by a cluster
        that stops the job, and it may come when the others' have stopped the training already.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handler(signum, frame):
            if world_size() > 1:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            elif self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True
            self.reporter.info(f"{self.name}: stopping after this step, with a checkpoint")

        previous = signal.signal(signal.SIGINT, handler)
        try:
            yield
        finally:
            is_settled = self.stop_requested and world_size() > 1
            signal.signal(signal.SIGINT, signal.SIG_IGN if is_settled else previous)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Note the step's learning rate, before the schedule changes it."""
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Write a snapshot if one is due, and stop if a rank was asked to."""
        if self.first_step is None:
            self.first_step = state.global_step
        if state.global_step in self.snapshot_steps and state.is_world_process_zero:
            self._write_snapshot(model, state.global_step)
        # A signal reaches ranks at different steps, but they have to stop at the same one.
        self.stop_requested = any(self.recorder.gather([self.stop_requested]))
        if self.stop_requested and state.global_step < self.setup.steps:
            control.should_save = control.should_training_stop = True
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Record the step, and report progress if the last message is old enough."""
        if "grad_norm" not in (logs or {}):
            return
        row = self.recorder.end_step(self.learning_rate, float(logs["grad_norm"]))
        self.reporter.count_tokens(row["tokens"])
        is_due = time.monotonic() - self.last_message >= self.MESSAGE_INTERVAL_S or row["step"] >= self.setup.steps
        if is_due and state.is_world_process_zero:
            self._report_progress(row)

    def on_save(self, args, state, control, **kwargs):
        """Complete the checkpoint that the Trainer wrote, and delete the older ones."""
        # Every rank must have written the state of its generators before the marker.
        self.recorder.gather([state.global_step])
        if not state.is_world_process_zero:
            return
        folder = self.work_dir / f"checkpoint-{state.global_step}"
        self.recorder.save(folder)
        fsync_tree(folder)
        content = _marker_content(self.work_dir, folder)
        with atomic_write(folder / MARKER) as file:
            file.write(content)
        for old in self.work_dir.glob("checkpoint-*"):
            if old != folder:
                (old / MARKER).unlink(missing_ok=True)
                shutil.rmtree(old)

    def _report_progress(self, row: dict) -> None:
        self.last_message = time.monotonic()
        elapsed = self.last_message - self.started
        steps_done = row["step"] - (self.first_step or row["step"]) + 1
        tokens = sum(earlier["tokens"] for earlier in self.recorder.log_rows[-steps_done:])
        selected = f"selected {row['selected_share']:.0%}, " if "selected_share" in row else ""
        left = elapsed / steps_done * (self.setup.steps - row["step"])
        details = f"loss {row['loss']:.3f}, {selected}{tokens / elapsed:,.0f} response tokens/s"
        self.reporter.info(progress_line(self.name, row["step"], self.setup.steps, "steps", details, left))

    def _write_snapshot(self, model, step: int) -> None:
        folder = self.work_dir / "snapshots" / f"step-{step:06d}"
        temporary = folder.with_name(f".{folder.name}.writing")
        # Only the student's adapter: an online teacher is another adapter of the same model.
        save_adapter(model, temporary)
        replace_folder(temporary, folder)
