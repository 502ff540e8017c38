"""`datasets/<dataset>`: normalised examples with their splits."""

import dagster as dg

from tokenuq_ml.config import Config
from tokenuq_pipeline.assets.factory import Stage, child_process_assets
from tokenuq_pipeline.nodes import dataset_node


def dataset_assets(config: Config, name: str) -> dg.AssetsDefinition:
    """The asset of one entry of datasets.yaml."""
    stage = Stage(
        dataset_node(name), deps=(), kinds=frozenset({"polars", "parquet"}),
        description=f"The dataset {name} as conversations, one row an example, each in one split: "
                    f"{', '.join(f'{size} {split}' for split, size in config.datasets[name].sizes.items())}.")
    return child_process_assets(config, f"datasets__{name}", "load_dataset", [stage], lambda store, stages: {})
