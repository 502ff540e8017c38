"""`models/<model>`: base weights, converted once and shared by all studies."""

import dagster as dg

from tokenuq_ml.config import Config
from tokenuq_pipeline.assets.factory import Stage, child_process_assets
from tokenuq_pipeline.nodes import model_node


def model_assets(config: Config, name: str) -> dg.AssetsDefinition:
    """The asset of one entry of models.yaml."""
    stage = Stage(
        model_node(name), deps=(), kinds=frozenset({"torch"}),
        description=f"The base model {name}: weights as safetensors, config, tokenizer and chat template, converted "
                    "once and shared by every study that names it.")
    return child_process_assets(config, f"models__{name}", "convert_model", [stage], lambda store, stages: {})
