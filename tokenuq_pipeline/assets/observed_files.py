"""`files/<dataset>`: the user's own files that a dataset is read from. Observed, not made."""

import warnings

import dagster as dg

from tokenuq_ml.config.load import Config
from tokenuq_pipeline.runtime.data_files import current_version, file_key, watched


def file_assets(config: Config) -> list[dg.SourceAsset]:
    """Return one observable asset per dataset with a `path`; its data version is the fingerprint of the content."""
    return [_observable(dataset, path) for dataset, path in watched(config).items()]


def _observable(dataset: str, path: str) -> dg.SourceAsset:
    with warnings.catch_warnings():
        # Observable source assets have been in beta for years. Without them only a run would tell Dagster of a change.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _define(dataset, path)


def _define(dataset: str, path: str) -> dg.SourceAsset:
    @dg.observable_source_asset(
        key=file_key(dataset),
        group_name="datasets",
        description=f"The files at {path}. An observation takes their fingerprint; if it changes, {dataset} is stale.",
        tags={"dagster/kind/file": ""},
        metadata={"path": dg.MetadataValue.path(path)},
        required_resource_keys={"store"},
    )
    def observe_files(context):
        version = current_version(path, context.resources.store)
        if version is None:
            raise dg.Failure(f"{path}: no data file; correct `path` of {dataset} in datasets.yaml", allow_retries=False)
        return dg.DataVersion(version)

    return observe_files
