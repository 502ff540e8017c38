"""`models/<model>`: base weights, converted once and shared by all studies of the model."""

from tokenuq_ml.config import ModelSpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import model_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset


def model_assets(config: Config) -> list[StageAsset]:
    """Return one asset per model of `models.yaml`."""
    return [
        StageAsset(
            stage="models",
            path=("models", name),
            fields=model_fields(config, name),
            description=_description(spec),
            kinds=frozenset({"python", "torch"}),
            needs_model=True,
            outputs={"weights": f"models/{name}"},
            inputs=inputs.examples(spec.language) if spec.language else (),
        )
        for name, spec in config.models.items()
    ]


def _description(spec: ModelSpec) -> str:
    trained = f", trained from scratch on {spec.language}" if spec.language else ""
    return f"The base model {spec.name}{trained}: weights as safetensors, config, tokenizer, chat template."
