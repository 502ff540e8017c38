"""`datasets/<dataset>`: normalised examples, whatever format they come in."""

from tokenuq_ml.config import Config
from tokenuq_ml.stages import dataset_fields
from tokenuq_pipeline.assets.stage import StageAsset
from tokenuq_pipeline.store import table_place


def dataset_assets(config: Config) -> list[StageAsset]:
    """One asset a dataset of `datasets.yaml`."""
    return [
        StageAsset(
            stage="datasets",
            path=("datasets", name),
            fields=dataset_fields(config, name),
            description=f"Examples of {name} ({spec.format}), split and normalised to messages.",
            kinds=frozenset({"python", "polars", "parquet"}),
            table="examples",
            outputs={"examples": table_place("examples", dataset=name)},
        )
        for name, spec in config.datasets.items()
    ]
