"""Model folders of tiny models, and the stage that converts them."""

from pathlib import Path

from transformers import PreTrainedModel

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_model
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.config import ModelSpec
from tokenuq_ml.stages import convert_model
from tokenuq_ml.stages.request import AssetRequest, StageRequest


def folder_model(folder: str | Path, kind: str = "llama", **tokenizer) -> PreTrainedModel:
    """Save a tiny model with its tokenizer; return the model."""
    made = tiny_tokenizer(folder, **tokenizer)
    model = tiny_model(kind, vocab=len(made))
    model.save_pretrained(folder)
    return model


def folder_spec(folder: str | Path, **spec) -> ModelSpec:
    """Return the entry `m` of a models.yaml for a model folder."""
    return ModelSpec(name="m", source="path", path=str(folder), **spec)


def run_conversion(spec: ModelSpec, folder: Path, fields: dict | None = None):
    """Run the stage `convert_model` in `folder`; return its reporter and its result."""
    (folder / "weights").mkdir(parents=True)
    asset = AssetRequest(
        fields=fields or spec.fields(), code_version="1-x", outputs={"weights": str(folder / "weights")}
    )
    reporter = RecordingReporter()
    convert_model.run(
        StageRequest(entrypoint="convert_model", assets={"models": asset}, inputs={}, work_dir=str(folder)), reporter
    )
    (result,) = reporter.results
    return reporter, result
