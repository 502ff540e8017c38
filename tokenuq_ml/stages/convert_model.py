"""Child process of `models/<model>`: fetch the base model once and store it as safetensors."""

from pathlib import Path

from tokenuq_ml.config import ModelSpec
from tokenuq_ml.models.conversion import Figures, convert
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetResult, StageReporter, StageRequest
from tokenuq_ml.tensor_digest import joined_digest, tensors_digest


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the output `weights`."""
    asset = request.assets["models"]
    spec = ModelSpec(**asset.fields)
    folder = Path(asset.outputs["weights"])
    reporter.info(f"{spec.name}: reading {spec.file or spec.path or spec.id}")
    Path(request.work_dir).mkdir(parents=True, exist_ok=True)
    figures = convert(spec, folder, request.work_dir)
    report_model(spec, figures, folder, reporter)


def report_model(spec: ModelSpec, figures: Figures, folder: Path, reporter: StageReporter) -> None:
    """Report a stored model, and what a user should know of its chat template."""
    reporter.info(f"{spec.name}: {figures['parameters']:,} parameters, stored as {figures['stored_dtype']} safetensors")
    reporter.info(f"{spec.name}: chat template: {figures['chat_template']}; a turn ends with {figures['end_of_turn']}")
    for note in str(figures.get("chat_template_notes", "")).splitlines():
        reporter.warning(f"{spec.name}: chat template: {note}")
    if figures["end_of_turn"] is None:
        reporter.warning(
            f"{spec.name}: its chat template ends an answer without a special token, so generated answers do not end; "
            "set `chat_template:` in models.yaml to one that does"
        )
    # Tokenizer and template decide the tokens, and the generation config decides where answers end, so that the data
    # version covers them too.
    text = [
        (folder / name).read_text()
        for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")
        if (folder / name).exists()
    ]
    digest = joined_digest(*(tensors_digest(path, *text) for path in sorted(folder.glob("*.safetensors"))))
    reporter.done(AssetResult(stage="models", data_version=digest, metrics=figures))


if __name__ == "__main__":
    runner.main(run)
