"""The rows of the tables `training_log` and `selections`, collected during training.

Shapes: N response tokens of a micro-batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tokenuq_ml.config import AblationSpec
from tokenuq_ml.costs.record import CostRecord
from tokenuq_ml.data.batching import Batch
from tokenuq_ml.kernels.training_loss import TrainingLoss
from tokenuq_ml.kernels.weight_rule import Weights
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_ml.transfers import HostCopy


@dataclass
class _StepSums:
    """Sums over the micro-batches of one optimiser step, on one rank."""

    step: int
    epoch: float
    tokens: int
    """Response tokens of the optimiser batch, over all ranks."""
    total: float = 0.0
    mle: float = 0.0
    n_mle: int = 0
    distill: float = 0.0
    n_distill: int = 0
    selected: int = 0

    def add(self, out: TrainingLoss) -> None:
        """Add a micro-batch, whose tensors are on the host."""
        mle_N, distill_N = out.weights.mle_N > 0, out.weights.distill_N > 0
        self.total += float(out.total)
        self.mle += float(out.loss_N[mle_N].sum())
        self.distill += float(out.divergence_N[distill_N].sum())
        self.n_mle += int(mle_N.sum())
        self.n_distill += int(distill_N.sum())
        self.selected += int(out.selected_N.sum())


@dataclass(frozen=True)
class _MicroBatch:
    """What was computed for a micro-batch, on its way to the host."""

    batch: Batch
    copy: HostCopy
    tokens_of_step: int
    step: int
    epoch: float

    @classmethod
    def of(cls, batch: Batch, out: TrainingLoss, *numbers: Any) -> "_MicroBatch":
        """Return the micro-batch; the copy starts now."""
        columns = (out.total, out.loss_N, out.divergence_N, *out.weights, out.selected_N)
        return cls(batch, HostCopy(*columns), *numbers)

    def out(self) -> TrainingLoss:
        """Return what was computed, on the host; waits for it."""
        total, loss_N, divergence_N, mle_N, distill_N, selected_N = self.copy.wait()
        return TrainingLoss(total, loss_N, divergence_N, Weights(mle_N, distill_N), selected_N)


class StepRecorder:
    """Collector of the rows of `training_log` and `selections` during training.

    Args:
        ablation: names the objective of selected tokens and of the rest.
    """

    def __init__(self, ablation: AblationSpec):
        self.ablation = ablation
        self.log_rows: list[dict] = []
        self.selection_frames: list[pl.DataFrame] = []
        self.gather: Callable[[list], list] = lambda own: own
        """Concatenates the lists of all ranks."""
        self.costs: CostRecord | None = None
        """Costs of the steps that this process made; set at the end of training."""
        self.aux_losses: list[float] = []
        """The router's loss of each step, of a mixture of experts; set at the end of training."""
        self.lora_rank: int | None = None
        """The adapter's active rank."""
        self.resumed_from = 0
        """The step of the checkpoint that training resumed from; 0 for a fresh start."""
        self.batching = "bucket"
        """How micro-batches were made: `bucket` or `pack`."""
        self._sums: _StepSums | None = None
        self._frames: list[pl.DataFrame] = []
        self._pending: list[_MicroBatch] = []

    @property
    def last_step(self) -> int:
        """The last optimiser step that was recorded; 0 before the first."""
        return self.log_rows[-1]["step"] if self.log_rows else 0

    def add(self, batch: Batch, out: TrainingLoss, tokens_of_step: int, step: int, steps_per_epoch: int) -> None:
        """Add a micro-batch. Its values are read at the end of the step, so that no pass waits for a GPU here.

        Args:
            batch: the micro-batch, with N response tokens.
            out: what was computed for them.
            tokens_of_step: response tokens of the optimiser batch, over all ranks.
            step: the optimiser step, from 1.
            steps_per_epoch: optimiser steps of an epoch.
        """
        self._pending.append(_MicroBatch.of(batch, out, tokens_of_step, step, step / steps_per_epoch))

    def _read(self) -> None:
        """Add what has been copied to the host since the last step."""
        pending, self._pending = self._pending, []
        for one in pending:
            if self._sums is None or self._sums.step != one.step:
                self._sums = _StepSums(one.step, one.epoch, one.tokens_of_step)
            out = one.out()
            self._sums.add(out)
            self._frames.append(self._selection_rows(one.batch, out, one.step, one.epoch))

    def _selection_rows(self, batch: Batch, out: TrainingLoss, step: int, epoch: float) -> pl.DataFrame:
        keys = batch.keys
        columns = {
            "example_id": pl.Series([example_id for example_id, _ in keys], dtype=pl.String),
            "position": pl.Series([position for _, position in keys], dtype=pl.Int32),
            "loss": out.loss_N.float().numpy(),
            "selected": out.selected_N.numpy(),
        }
        kinds = pl.lit(self.ablation.selected.label), pl.lit(self.ablation.rest.label)
        return pl.DataFrame(columns).select(
            pl.lit(step, pl.Int32).alias("step"),
            pl.lit(epoch, pl.Float32).alias("epoch"),
            *columns,
            pl.when("selected").then(kinds[0]).otherwise(kinds[1]).alias("objective"),
        )

    def end_step(self, learning_rate: float, grad_norm: float) -> dict:
        """Add the step's row to the log, from the sums of all ranks, and return it.

        Args:
            learning_rate: of the step.
            grad_norm: norm of the gradient before clipping.
        """
        self._read()
        ranks = self.gather([(self._sums, self._frames)])
        self._sums, self._frames = None, []
        self.selection_frames += [frame for _, frames in ranks for frame in frames]
        first = ranks[0][0]
        sums = {
            name: sum(getattr(rank_sums, name) for rank_sums, _ in ranks)
            for name in ("total", "mle", "n_mle", "distill", "n_distill", "selected")
        }
        row = {
            "step": first.step,
            "epoch": first.epoch,
            "loss": sums["total"] / first.tokens,
            "mle_loss": sums["mle"] / sums["n_mle"] if sums["n_mle"] else None,
            "distill_loss": sums["distill"] / sums["n_distill"] if sums["n_distill"] else None,
            "selected_share": sums["selected"] / first.tokens,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens": first.tokens,
            "lora_rank": self.lora_rank,
        }
        self.log_rows.append(row)
        return row

    def training_log(self) -> pl.DataFrame:
        """Return the `training_log` table."""
        schema = {
            name: pl.DataFrame(TABLES["training_log"].schema.empty_table()).schema[name]
            for name in TABLES["training_log"].columns
        }
        return pl.DataFrame(self.log_rows, schema=schema)

    def selections(self) -> pl.DataFrame:
        """Return the `selections` table."""
        return pl.concat(self.selection_frames)

    def save(self, folder: Path) -> None:
        """Write both tables to a checkpoint."""
        self.training_log().write_parquet(folder / "training_log.parquet")
        self.selections().write_parquet(folder / "selections.parquet")

    def load(self, folder: Path) -> None:
        """Replace both tables by those of a checkpoint."""
        self.log_rows = pl.read_parquet(folder / "training_log.parquet").to_dicts()
        self.selection_frames = [pl.read_parquet(folder / "selections.parquet")]
        self.resumed_from = self.last_step
