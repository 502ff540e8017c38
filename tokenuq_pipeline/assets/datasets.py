"""`datasets/<dataset>`: examples as conversations, whatever format they come in."""

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import dataset_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.data_files import watched
from tokenuq_pipeline.runtime.store_layout import table_path


def dataset_assets(config: Config) -> list[StageAsset]:
    """Return one asset per dataset of `datasets.yaml`."""
    return [
        StageAsset(
            stage="datasets",
            path=("datasets", name),
            fields=dataset_fields(config, name),
            description=f"Examples of {name} ({spec.format}), split and normalised to messages.",
            kinds=frozenset({"python", "polars", "parquet"}),
            table="examples",
            outputs={table: table_path(table, dataset=name) for table in ("examples", "rejected_rows")},
            inputs=inputs.examples(*sorted(spec.mix or ())),
            observed=(("files", name),) if name in watched(config) else (),
        )
        for name, spec in _in_order(config).items()
    ]


def _in_order(config: Config) -> dict[str, DatasetSpec]:
    """Return the datasets by name, those that a mix is made of before it."""
    names = dict.fromkeys(name for dataset in config.datasets for name in config.with_sources(dataset))
    return {name: config.datasets[name] for name in names}
