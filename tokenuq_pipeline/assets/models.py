"""`models/<model>`: base weights, converted once and shared by all studies of the model."""

from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import model_fields
from tokenuq_pipeline.assets.asset import StageAsset


def model_assets(config: Config) -> list[StageAsset]:
    """Return one asset per model of `models.yaml`."""
    return [
        StageAsset(
            stage="models",
            path=("models", name),
            fields=model_fields(config, name),
            description=f"The base model {name}: weights as safetensors, config, tokenizer, chat template.",
            kinds=frozenset({"python", "torch"}),
            needs_model=True,
            outputs={"weights": f"models/{name}"},
        )
        for name in config.models
    ]
