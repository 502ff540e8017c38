"""`files/<dataset>` and `curation/<name>`: the user's own files that datasets are made from. Observed, not made."""

import warnings

import dagster as dg

from tokenuq_ml.config import CuratedDatasetSpec, DatasetSpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.data.sources.locate import why_missing
from tokenuq_pipeline.runtime.data_files import current_version, file_key, watched

FILES_GROUP = "files"
"""The group in which the UI draws the user's own files, reviewed files included."""


def file_assets(config: Config) -> list[dg.SourceAsset]:
    """Return one observable asset per dataset with a `path`, and per reviewed file that datasets are made by.

    The data version is the fingerprint of the content.
    """
    specs = {file_key(config.datasets[name]): config.datasets[name] for name in watched(config)}
    return [_observable(spec, str(spec.path)) for spec in specs.values()]


def _observable(spec: DatasetSpec, path: str) -> dg.SourceAsset:
    with warnings.catch_warnings():
        # Observable source assets have been in beta for years. Without them only a run would tell Dagster of a change.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _define(spec, path)


def _define(spec: DatasetSpec, path: str) -> dg.SourceAsset:
    dataset = spec.name

    @dg.observable_source_asset(
        key=file_key(spec),
        group_name=FILES_GROUP,
        description=f"The files at {path}. An observation takes their fingerprint; if it changes, {dataset} is stale.",
        tags={"dagster/kind/file": ""},
        metadata={"path": dg.MetadataValue.path(path), **_columns(spec)},
        required_resource_keys={"store"},
    )
    def observe_files(context):
        version = current_version(spec, context.resources.store)
        if version is None:
            reason = why_missing(spec) or f"{path}: no data file; correct `path:` of {dataset} in datasets.yaml"
            raise dg.Failure(reason, allow_retries=False)
        return dg.DataVersion(version)

    return observe_files


def _columns(spec: DatasetSpec) -> dict[str, dg.TableSchema]:
    """Return the columns of a reviewed file that a dataset is made by, for the column lineage."""
    if not isinstance(spec, CuratedDatasetSpec):
        return {}
    from tokenuq_ml.data.curation import EMPTY_DECISIONS

    read = {"example_id": "string"} | {name: str(dtype).lower() for name, dtype in EMPTY_DECISIONS.items()}
    return {"dagster/column_schema": dg.TableSchema([dg.TableColumn(*column) for column in read.items()])}
