"""Child process of `<study>/baseline_teacher` if the study tries several: takes the chosen candidate."""

import shutil
from pathlib import Path

from tokenuq_ml.models.adapters import adapter_digest
from tokenuq_ml.reports import plots
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tensor_digest import joined_digest


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the outputs `adapter`, `training_log` and `plots` with those of the candidate.

    The data version is that of a teacher which was trained at the candidate's setting alone.
    """
    asset, inputs = request.assets["baseline_teacher"], request.inputs
    chosen = read_table(inputs["teacher_candidates"]).filter("chosen").row(0, named=True)
    name = chosen["candidate"]
    adapter = Path(asset.outputs["adapter"])
    shutil.copytree(inputs[f"adapter/{name}"], adapter, dirs_exist_ok=True)
    if "snapshots" in asset.outputs:
        shutil.copytree(inputs[f"snapshots/{name}"], asset.outputs["snapshots"], dirs_exist_ok=True)
    log = read_table(inputs[f"training_log/{name}"])
    log_digest = write_table(log, "training_log", asset.outputs["training_log"], **asset.stamp)
    plots.training_curve(log, Path(asset.outputs["plots"]) / "training_curve.png")
    last = log.tail(max(1, len(log) // 5))
    reporter.done(
        AssetResult(
            stage="baseline_teacher",
            data_version=joined_digest(adapter_digest(adapter), log_digest),
            metrics={
                "candidate": name,
                "validation_loss": chosen["loss"],
                "steps": len(log),
                "first_loss": float(log["loss"][0]),
                "final_loss": float(last["loss"].mean()),
            },
            plots={"Training curve": "plots/training_curve.png"},
        )
    )


if __name__ == "__main__":
    runner.main(run)
