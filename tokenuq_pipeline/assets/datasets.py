"""`datasets/<dataset>`: examples as conversations, whatever format they come in."""

from tokenuq_ml.config import CuratedDatasetSpec, DatasetSpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import dataset_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.data_files import ObservedFiles, watched
from tokenuq_pipeline.runtime.store_layout import table_path


def dataset_assets(config: Config) -> list[StageAsset]:
    """Return one asset per dataset of `datasets.yaml`."""
    files = watched(config)
    return [
        StageAsset(
            stage="datasets",
            path=("datasets", name),
            fields=dataset_fields(config, name),
            description=_description(spec),
            kinds=frozenset({"python", "polars", "parquet"}),
            table="examples",
            outputs={table: table_path(table, dataset=name) for table in ("examples", "rejected_rows")},
            inputs=inputs.examples(*spec.made_of),
            observed_files=(ObservedFiles(spec),) if name in files else (),
            files={"curation": str(spec.path)} if isinstance(spec, CuratedDatasetSpec) else {},
        )
        for name, spec in _in_order(config).items()
    ]


def _description(spec: DatasetSpec) -> str:
    if isinstance(spec, CuratedDatasetSpec):
        return f"Examples of {spec.made_from} as {spec.path} decides: without some, weighted, or masked in part."
    return f"Examples of {spec.name} ({spec.format}), split and normalised to messages."


def _in_order(config: Config) -> dict[str, DatasetSpec]:
    """Return the datasets by name, those that another is made of before it."""
    names = dict.fromkeys(name for dataset in config.datasets for name in config.with_sources(dataset))
    return {name: config.datasets[name] for name in names}
