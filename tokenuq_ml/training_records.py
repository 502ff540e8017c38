"""What a training run leaves behind: the step and selection logs, checkpoints, adapter snapshots.

A checkpoint counts only once its marker is there, which is written last; it carries the
logs up to its step, so that after a kill the rows past it are gone with the rest. Does not
know how a loss is computed.
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import torch
from torch import Tensor
from transformers import TrainerCallback

from tokenuq_ml.batching import Batch
from tokenuq_ml.costs import CostRecord
from tokenuq_ml.kernels import TrainingLoss
from tokenuq_ml.specs import AblationSpec
from tokenuq_ml.stages import Reporter
from tokenuq_ml.tables import TABLES

if TYPE_CHECKING:
    from tokenuq_ml.training import TrainingSetup

MARKER = "COMPLETE"


class StepRecorder:
    """Collects the rows of `training_log` and `selections` while training runs."""

    def __init__(self, ablation: AblationSpec):
        self.ablation = ablation
        self.log_rows: list[dict] = []
        self.selection_frames: list[pl.DataFrame] = []
        self.gather: Callable[[list], list] = lambda own: own
        """Of the lists of all ranks, one list."""
        self.costs: CostRecord | None = None
        """Of the steps that this process made; set when training has ended."""
        self.lora_rank: int | None = None
        """The adapter's active rank."""
        self.batching = "bucket"
        """How micro-batches were in fact made."""
        self._step: dict | None = None
        self._frames: list[pl.DataFrame] = []

    @property
    def last_step(self) -> int:
        return self.log_rows[-1]["step"] if self.log_rows else 0

    def add(
        self,
        batch: Batch,
        selected_N: Tensor,
        out: TrainingLoss,
        tokens_of_step: int,
        step: int,
        steps_per_epoch: int,
    ) -> None:
        """One micro-batch of optimiser step `step`, with N response tokens."""
        if self._step is None or self._step["step"] != step:
            self._step = {
                "step": step,
                "epoch": step / steps_per_epoch,
                "tokens": tokens_of_step,
                "total": 0.0,
                "mle": 0.0,
                "n_mle": 0,
                "distill": 0.0,
                "n_distill": 0,
                "selected": 0,
            }
        sums = self._step
        mle_N, distill_N = out.weights.mle_N > 0, out.weights.distill_N > 0
        sums["total"] += float(out.total.detach())
        sums["mle"] += float(out.loss_N[mle_N].sum())
        sums["distill"] += float(out.divergence_N[distill_N].sum())
        sums["n_mle"] += int(mle_N.sum())
        sums["n_distill"] += int(distill_N.sum())
        sums["selected"] += int(selected_N.sum())
        keys = batch.keys
        self._frames.append(
            pl.DataFrame(
                {
                    "example_id": pl.Series([example_id for example_id, _ in keys], dtype=pl.String),
                    "position": pl.Series([position for _, position in keys], dtype=pl.Int32),
                    "loss": out.loss_N.float().cpu().numpy(),
                    "selected": selected_N.cpu().numpy(),
                }
            ).select(
                pl.lit(step, pl.Int32).alias("step"),
                pl.lit(step / steps_per_epoch, pl.Float32).alias("epoch"),
                "example_id",
                "position",
                "loss",
                "selected",
                pl.when("selected")
                .then(pl.lit(self.ablation.selected.kind))
                .otherwise(pl.lit(self.ablation.rest.kind))
                .alias("objective"),
            )
        )

    def end_step(self, learning_rate: float, grad_norm: float) -> dict:
        """Close the row of the optimiser step that was just taken, by all ranks together."""
        ranks = self.gather([(self._step, self._frames)])
        self._step, self._frames = None, []
        self.selection_frames += [frame for _, frames in ranks for frame in frames]
        sums = dict(ranks[0][0])
        for name in ("total", "mle", "n_mle", "distill", "n_distill", "selected"):
            sums[name] = sum(step[name] for step, _ in ranks)
        row = {
            "step": sums["step"],
            "epoch": sums["epoch"],
            "loss": sums["total"] / sums["tokens"],
            "mle_loss": sums["mle"] / sums["n_mle"] if sums["n_mle"] else None,
            "distill_loss": sums["distill"] / sums["n_distill"] if sums["n_distill"] else None,
            "selected_share": sums["selected"] / sums["tokens"],
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens": sums["tokens"],
            "lora_rank": self.lora_rank,
        }
        self.log_rows.append(row)
        return row

    def training_log(self) -> pl.DataFrame:
        """The `training_log` table."""
        schema = {
            name: pl.DataFrame(TABLES["training_log"].schema.empty_table()).schema[name]
            for name in TABLES["training_log"].columns
        }
        return pl.DataFrame(self.log_rows, schema=schema)

    def selections(self) -> pl.DataFrame:
        """The `selections` table."""
        return pl.concat(self.selection_frames)

    def save(self, folder: Path) -> None:
        """Both tables into a checkpoint."""
        self.training_log().write_parquet(folder / "training_log.parquet")
        self.selections().write_parquet(folder / "selections.parquet")

    def load(self, folder: Path) -> None:
        """Both tables as they stood at a checkpoint."""
        self.log_rows = pl.read_parquet(folder / "training_log.parquet").to_dicts()
        self.selection_frames = [pl.read_parquet(folder / "selections.parquet")]


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The furthest checkpoint that is whole; a half-written one has no marker and does not count."""
    whole = [path.parent for path in Path(work_dir).glob(f"checkpoint-*/{MARKER}")]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


class CheckpointCallback(TrainerCallback):
    """Marks whole checkpoints, keeps snapshots, reports progress, and stops within a step on SIGINT."""

    SAY_EVERY_S = 5.0

    def __init__(self, recorder: StepRecorder, setup: "TrainingSetup", work_dir: Path, reporter: Reporter, name: str):
        self.recorder, self.setup, self.work_dir = recorder, setup, work_dir
        self.reporter, self.name = reporter, name
        self.stop_requested = False
        self.learning_rate = 0.0
        self.started = self.said = time.monotonic()
        self.first_step = None
        self.snapshot_steps = {round(f * setup.steps) for f in setup.snapshot_fractions} - {0, setup.steps}

    @contextmanager
    def graceful_stop(self):
        """SIGINT inside asks for a checkpoint and a stop after the running step; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handler(signum, frame):
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True
            self.reporter.info(f"{self.name}: stopping after this step, with a checkpoint")

        previous = signal.signal(signal.SIGINT, handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.first_step is None:
            self.first_step = state.global_step
        if state.global_step in self.snapshot_steps and state.is_world_process_zero:
            self._snapshot(model, state.global_step)
        # A signal reaches ranks at different steps; they have to stop at the same one.
        self.stop_requested = any(self.recorder.gather([self.stop_requested]))
        if self.stop_requested and state.global_step < self.setup.steps:
            control.should_save = control.should_training_stop = True
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "grad_norm" not in (logs or {}):
            return
        row = self.recorder.end_step(self.learning_rate, float(logs["grad_norm"]))
        self.reporter.count_tokens(row["tokens"])
        now = time.monotonic()
        if now - self.said < self.SAY_EVERY_S and row["step"] < self.setup.steps or not state.is_world_process_zero:
            return
        self.said = now
        done = row["step"] - (self.first_step or row["step"]) + 1
        rate = (now - self.started) / done
        tokens = sum(r["tokens"] for r in self.recorder.log_rows[-done:]) / (now - self.started)
        self.reporter.info(
            f"{self.name}: step {row['step']}/{self.setup.steps}, loss {row['loss']:.3f}, selected "
            f"{row['selected_share']:.0%}, {tokens:,.0f} response tokens/s, "
            f"{rate * (self.setup.steps - row['step']):.0f} s to go"
        )

    def on_save(self, args, state, control, **kwargs):
        # Not before every rank has written its generators' states.
        self.recorder.gather([state.global_step])
        if not state.is_world_process_zero:
            return
        folder = self.work_dir / f"checkpoint-{state.global_step}"
        self.recorder.save(folder)
        for path in folder.iterdir():
            _fsync(path)
        (folder / MARKER).touch()
        _fsync(folder / MARKER)
        _fsync(folder)
        for old in self.work_dir.glob("checkpoint-*"):
            if old != folder:
                (old / MARKER).unlink(missing_ok=True)
                shutil.rmtree(old)

    def _snapshot(self, model, step: int) -> None:
        folder = self.work_dir / "snapshots" / f"step-{step:06d}"
        temporary = folder.with_name(f".{folder.name}.writing")
        # An online teacher is an adapter of the same model; it is not the student's to keep.
        model.save_pretrained(temporary, selected_adapters=[model.active_adapter])
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def trainable_parameters(model: torch.nn.Module) -> int:
    """Parameters that a gradient reaches."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
