"""Child process of `<study>/teacher_sweep`: compares the candidates for the teacher on the validation split."""

import polars as pl

from tokenuq_ml.config import EvaluationSpec, TrainChange
from tokenuq_ml.evaluation.bootstrap import bootstrap_ratio
from tokenuq_ml.evaluation.validation import mean_loss
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TABLES


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the output `teacher_candidates`. The first of the candidates with the lowest loss is chosen."""
    asset = request.assets["teacher_sweep"]
    evaluation = EvaluationSpec(**asset.fields["evaluation"])
    rows = []
    for candidate, fields in asset.fields["candidates"].items():
        losses = read_table(request.inputs[f"validation_losses/{candidate}"]).sort("example_id")
        _, low, high = bootstrap_ratio(
            losses["loss"].to_numpy(),
            losses["tokens"].to_numpy(),
            resamples=evaluation.bootstrap,
            confidence=evaluation.confidence,
            seed=evaluation.seed,
        )
        setting = TrainChange(**fields)
        own = {key: getattr(setting, key) for key in ("learning_rate", "epochs", "weight_decay")}
        figures = {"loss": mean_loss(losses), "ci_low": low, "ci_high": high, "n": len(losses)}
        rows.append({"candidate": candidate, **own, **figures})
    best = min(rows, key=lambda row: row["loss"])
    columns = list(TABLES["teacher_candidates"].columns)
    table = pl.DataFrame([{**row, "chosen": row is best} for row in rows], infer_schema_length=None).select(columns)
    digest = write_table(table, "teacher_candidates", asset.outputs["teacher_candidates"], **asset.stamp)
    setting = TrainChange(**asset.fields["candidates"][best["candidate"]])
    reporter.info(
        f"{request.study}: of {len(rows)} teachers, the one with {setting.text} has the lowest validation loss, "
        f"{best['loss']:.4f} nats per token"
    )
    losses_by_name = {f"validation_loss_{row['candidate']}": row["loss"] for row in rows}
    metrics = {"chosen": best["candidate"], "candidates": len(rows), **losses_by_name}
    reporter.done(AssetResult(stage="teacher_sweep", data_version=digest, metrics=metrics))


if __name__ == "__main__":
    runner.main(run)
