"""The base model, the checkpoints and the outputs of a training. Shared by teacher and students."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
from peft import PeftModel

from tokenuq_ml import process_group
from tokenuq_ml.config import spec_hash
from tokenuq_ml.costs.record import FILE as COSTS_FILE
from tokenuq_ml.models.adapters import TrainedModel, adapter_digest, save_adapter
from tokenuq_ml.models.load import load_tokenizer
from tokenuq_ml.reports import plots
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.tensor_digest import tensors_digest
from tokenuq_ml.training.recorder import StepRecorder


@dataclass(frozen=True)
class TrainedAdapter:
    """A stored adapter, with the digests and figures of its training."""

    digest: str
    log_digest: str
    figures: dict

    def with_figures(self, more: Mapping[str, str]) -> "TrainedAdapter":
        """Return the adapter with further figures."""
        return replace(self, figures={**self.figures, **more})


def model_digest(folder: str | Path) -> str:
    """Return the content hash of a base model's tensors; of several processes, one reads them."""
    paths = sorted(Path(folder).glob("*.safetensors"))
    return process_group.on_main(lambda: "-".join(tensors_digest(path) for path in paths))


def checkpoint_dir(context: StageContext, **inputs: str) -> Path:
    """Return the folder of a training's checkpoints.

    Its name is a hash of everything that affects the result: the spec, the content of the inputs, device, precision,
    the counts of threads and processes, and their sharding. It does not depend on the run, so that a rerun resumes.

    Args:
        context: of the training stage.
        **inputs: input -> its content digest.
    """
    asset, ranks = context.asset, process_group.world_size()
    # One process has the key that it had before there could be several.
    processes = {"processes": ranks, "sharding": context.request.sharding} if ranks > 1 else {}
    numerics = context.numerics.fields()
    key = spec_hash({"spec": asset.spec_hash, "code": asset.code_version, **numerics, **processes, **inputs})
    folder = Path(context.request.work_dir, key)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def store_adapter(context: StageContext, model: TrainedModel, recorder: StepRecorder, work_dir: Path) -> TrainedAdapter:
    """Fill the outputs `adapter`, `training_log`, `plots`, and `snapshots` and `costs` if there are any; on rank 0.

    A model that was trained without an adapter is stored as `adapter` too, with its tokenizer: transformers loads it.
    """
    save_adapter(model, context.output("adapter"))
    if not isinstance(model, PeftModel):
        load_tokenizer(context.input("model")).save_pretrained(context.output("adapter"))
    if "snapshots" in context.asset.outputs and (work_dir / "snapshots").is_dir():
        shutil.copytree(work_dir / "snapshots", context.output("snapshots"), dirs_exist_ok=True)
    if "costs" in context.asset.outputs and recorder.costs is not None:
        recorder.costs.write(context.output("costs") / COSTS_FILE)
    log = recorder.training_log()
    log_digest = write_table(log, "training_log", context.output("training_log"), **context.asset.stamp)
    plots.training_curve(log, context.output("plots") / "training_curve.png")
    figures = {"resumed_from_step": recorder.resumed_from, **_figures(recorder, log)}
    return TrainedAdapter(adapter_digest(context.output("adapter")), log_digest, figures)


def _figures(recorder: StepRecorder, log: pl.DataFrame) -> dict[str, float | int | str]:
    last = log.tail(max(1, len(log) // 5))
    figures = {
        "steps": len(log),
        "response_tokens_trained": int(log["tokens"].sum()),
        "selected_tokens": recorder.selections().select("selected").sum().item(),
        "first_loss": float(log["loss"][0]),
        "final_loss": float(last["loss"].mean()),
        "batching": recorder.batching,
    }
    if recorder.aux_losses:
        figures["first_aux_loss"], figures["final_aux_loss"] = recorder.aux_losses[0], recorder.aux_losses[-1]
    if recorder.costs is not None:
        figures["selection_pass_seconds"] = round(recorder.costs.seconds.selection, 3)
        figures["seconds_a_step"] = round(recorder.costs.seconds.total / recorder.costs.steps, 3)
    return figures
