"""Publish what a child process has made, and use what another run has made meanwhile.

Two runs of one study each want the same assets. The lease of a child process lets one of them work; the other waits for
the lease, finds the assets fresh in the store, and reports those to its own Dagster instance.
"""

import time
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from tokenuq_ml.config import spec_hash
from tokenuq_ml.stages.request import AssetResult, StageRequest
from tokenuq_pipeline.assets.asset import StageAsset, seed_of
from tokenuq_pipeline.runtime.git import git_state
from tokenuq_pipeline.runtime.instance import ONLY_STALE_TAG
from tokenuq_pipeline.runtime.leases import Lease
from tokenuq_pipeline.runtime.manifest import Manifest, Provenance
from tokenuq_pipeline.runtime.store import Store


def versions_read(store: Store, asset: StageAsset) -> dict[str, str | None]:
    """Return the data version of everything that a stage is about to read, by asset; without what it does not need.

    Taken before the child starts: if another run replaces an input meanwhile, the asset is stale, as it should be.
    """
    made = {path: store.data_version("/".join(path)) for path in asset.reads}
    read = {
        "/".join(path): version
        for path, version in made.items()
        if version is not None or path not in asset.optional_reads
    }
    return read | {"/".join(files.key.path): files.version(store) for files in asset.observed_files}


def publish(
    store: Store,
    lease: Lease,
    request: StageRequest,
    asset: StageAsset,
    result: AssetResult,
    run_id: str,
    versions: dict[str, str | None],
) -> Manifest:
    """Publish the outputs of an asset and write its manifest.

    Raises:
        LeaseLost: another process has taken over; nothing is published.
    """
    staged = {output: Path(request.assets[asset.stage].outputs[output]) for output in asset.outputs}
    files = store.settle(staged, asset.outputs)
    provenance = Provenance(
        run_id=run_id,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed_of(asset.fields),
        packages=result.packages,
        **git_state(),
    )
    manifest = Manifest(
        asset=asset.name,
        data_version=result.data_version,
        code_version=asset.code_version,
        spec_hash=spec_hash(asset.fields),
        fields=asset.fields,
        input_data_versions=dict(versions),
        metrics=result.metrics,
        plots=result.plots,
        checks=result.checks,
        provenance=provenance,
        outputs=asset.outputs,
        files=files,
    )
    with lease.publishing():
        store.publish(manifest, staged)
    return manifest


def made_meanwhile(
    context: dg.AssetExecutionContext, store: Store, wanted: dict[str, StageAsset]
) -> list[tuple[StageAsset, Manifest]]:
    """Return those of the wanted assets, by stage, that need not be made, each with its manifest.

    - What an earlier attempt of this run has published.
    - What is fresh in the store, if the run asks only for what is stale, or if it was made since the run was created.
      A person who asks for a fresh asset to be made again gets it made again.

    An asset is not used if one that it reads has yet to be made.
    """
    found: list[tuple[StageAsset, Manifest]] = []
    left = {asset.path for asset in wanted.values()}
    for asset in wanted.values():
        manifest = store.read_manifest(asset.name)
        if manifest is None or left & set(asset.reads) or not store.is_complete(asset.name):
            continue
        own = bool(context.retry_number) and manifest.provenance.run_id == context.run_id
        if own or (_is_current(store, asset, manifest) and _may_use(context, store, asset)):
            left.discard(asset.path)
            found.append((asset, manifest))
    return found


def _is_current(store: Store, asset: StageAsset, manifest: Manifest) -> bool:
    """Return whether an asset was made as it would be made now."""
    return manifest.code_version == asset.code_version and manifest.input_data_versions == versions_read(store, asset)


def _may_use(context: dg.AssetExecutionContext, store: Store, asset: StageAsset) -> bool:
    if ONLY_STALE_TAG in context.run.tags:
        return True
    record, age = context.instance.get_run_record_by_id(context.run_id), store.manifest_age(asset.name)
    # Ages, each by one clock: that of Dagster's database and that of the file system may differ.
    return record is not None and age is not None and age < time.time() - record.create_timestamp.timestamp()
