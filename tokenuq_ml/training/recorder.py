"""The rows of the tables `training_log` and `selections`, collected while training runs."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from tokenuq_ml.config import AblationSpec
from tokenuq_ml.costs.record import CostRecord
from tokenuq_ml.data.batching import Batch
from tokenuq_ml.kernels.training_loss import TrainingLoss
from tokenuq_ml.tables.schemas import TABLES


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
        sums["selected"] += int(out.selected_N.sum())
        keys = batch.keys
        self._frames.append(
            pl.DataFrame(
                {
                    "example_id": pl.Series([example_id for example_id, _ in keys], dtype=pl.String),
                    "position": pl.Series([position for _, position in keys], dtype=pl.Int32),
                    "loss": out.loss_N.float().cpu().numpy(),
                    "selected": out.selected_N.cpu().numpy(),
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
