"""Build Dagster assets from `StageAsset`s, and run the child process that makes them.

Request, child, publication, manifest, events. Does not know which stages exist or how a child is started.
"""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from tokenuq_ml.config import spec_hash
from tokenuq_ml.stages.request import AssetRequest, AssetResult, StageRequest
from tokenuq_pipeline.assets import metadata
from tokenuq_pipeline.assets.asset import StageAsset, StageCheck, seed_of
from tokenuq_pipeline.assets.conditions import FOLLOWS_ITS_INPUTS
from tokenuq_pipeline.runtime.git import git_state
from tokenuq_pipeline.runtime.instance import ACCELERATOR
from tokenuq_pipeline.runtime.launcher import StageFailure
from tokenuq_pipeline.runtime.store import Store

RETRIES, RETRY_DELAY_S = 2, 2.0
"""For a child that crashed: it goes on from its checkpoint, so that failing again at the same place costs little."""


def asset_spec(asset: StageAsset, skippable: bool) -> dg.AssetSpec:
    """Return the asset as Dagster sees it. Owners are left out on purpose: each team sets its own."""
    tags = {name: value for name, value in (("study", asset.study), ("ablation", asset.ablation)) if value}
    return dg.AssetSpec(
        asset.key,
        deps=[dg.AssetKey(dep) for dep in (*asset.deps, *asset.observed)],
        description=asset.description,
        code_version=asset.code_version,
        kinds=set(asset.kinds),
        group_name=asset.group,
        tags=tags,
        metadata=metadata.definition(asset),
        automation_condition=FOLLOWS_ITS_INPUTS if asset.follows_inputs else None,
        skippable=skippable,
    )


def build_assets(assets: list[StageAsset], entrypoint: str, op_name: str) -> dg.AssetsDefinition:
    """The assets that one child process makes; of several, any subset can be asked for."""
    several = len(assets) > 1

    @dg.multi_asset(
        name=op_name,
        specs=[asset_spec(asset, skippable=several) for asset in assets],
        can_subset=several,
        check_specs=[
            dg.AssetCheckSpec(check.name, asset=asset.key, blocking=True, description=check.description)
            for asset in assets
            for check in asset.checks
        ]
        or None,
        required_resource_keys={"store", "launcher"},
        pool=ACCELERATOR if any(asset.needs_model for asset in assets) else None,
    )
    def stage(context: dg.AssetExecutionContext):
        yield from run_stage(context, assets, entrypoint)

    return stage


def run_stage(context: dg.AssetExecutionContext, assets: list[StageAsset], entrypoint: str) -> Iterator:
    """Run the child for the selected assets; publish and yield each as soon as it is whole.

    Raises:
        RetryRequested: the child crashed. Not by an op's retry policy, which would also retry what a person cancels.
    """
    store: Store = context.resources.store
    wanted = {asset.stage: asset for asset in assets if asset.key in context.selected_asset_keys}
    if not wanted:
        # Only checks were asked for: of an asset whose run ended before they were done.
        for asset in assets:
            yield from (_evaluate(check, asset, store) for check in _selected(context, asset))
        return
    for asset in list(wanted.values()) if context.retry_number else ():
        if (manifest := _made_before(store, asset, context.run_id)) is not None:
            del wanted[asset.stage]
            yield from _outcome(context, asset, manifest, store)
    if not wanted:
        return
    _require_inputs(store, wanted)
    with store.staging() as staging:
        request = _request(store, staging, wanted, entrypoint, assets[0].name)
        missing = set(wanted)
        try:
            with contextlib.closing(context.resources.launcher.run(context, request, staging)) as results:
                for result in results:
                    asset = wanted[result.stage]
                    manifest = _publish(store, request, asset, result, context.run_id)
                    missing.discard(result.stage)
                    events = list(_outcome(context, asset, manifest, store))
                    yield from events
                    if not all(event.passed for event in events[1:]):
                        # Dagster fails the step for it; what the child would make next builds on what is wrong.
                        return
        except StageFailure as failure:
            if not failure.crashed:
                raise
            wait = RETRY_DELAY_S * 2**context.retry_number
            raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=wait) from failure
    if missing:
        raise dg.Failure(f"{entrypoint} ended without {', '.join(sorted(missing))}", allow_retries=False)


def _outcome(context: dg.AssetExecutionContext, asset: StageAsset, manifest: dict, store: Store) -> Iterator:
    """The materialisation of a published asset, then its own checks."""
    yield dg.MaterializeResult(
        asset_key=asset.key,
        data_version=dg.DataVersion(manifest["data_version"]),
        metadata=metadata.materialization(asset, manifest, store),
    )
    yield from (_evaluate(check, asset, store) for check in _selected(context, asset))


def _made_before(store: Store, asset: StageAsset, run_id: str) -> dict | None:
    """The manifest of an asset that an earlier attempt of this very run has published."""
    manifest = store.read_manifest(asset.name)
    same = manifest is not None and manifest.get("provenance", {}).get("run_id") == run_id
    return manifest if same and store.is_complete(asset.name) else None


def _selected(context: dg.AssetExecutionContext, asset: StageAsset) -> list[StageCheck]:
    chosen = context.op_execution_context.selected_asset_check_keys
    return [check for check in asset.checks if dg.AssetCheckKey(asset.key, check.name) in chosen]


def _evaluate(check: StageCheck, asset: StageAsset, store: Store) -> dg.AssetCheckResult:
    return check.evaluate(store)._replace(asset_key=asset.key, check_name=check.name)


def _require_inputs(store: Store, wanted: dict[str, StageAsset]) -> None:
    made = {asset.path for asset in wanted.values()}
    needed = dict.fromkeys(dep for asset in wanted.values() for dep in asset.deps if dep not in made)
    lacking = ["/".join(dep) for dep in needed if store.read_manifest("/".join(dep)) is None]
    if lacking:
        raise dg.Failure(f"{store.home}: {', '.join(lacking)} not there; materialise first", allow_retries=False)


def _request(store: Store, staging: Path, wanted: dict[str, StageAsset], entrypoint: str, work: str) -> StageRequest:
    requests, made = {}, set()
    for stage, asset in wanted.items():
        outputs = {}
        for output, place in asset.outputs.items():
            folder = staging / stage / output
            folder.mkdir(parents=True)
            outputs[output] = str(folder)
            made.add(place)
        requests[stage] = AssetRequest(fields=asset.fields, code_version=asset.code_version, outputs=outputs)
    first = next(iter(wanted.values()))
    inputs = {
        name: str(store.path(place))
        for asset in wanted.values()
        for name, place in asset.inputs.items()
        if place not in made
    }
    return StageRequest(
        entrypoint=entrypoint,
        study=first.study,
        ablation=first.ablation,
        assets=requests,
        inputs=inputs,
        work_dir=str(store.work_dir(work)),
    )


def _publish(store: Store, request: StageRequest, asset: StageAsset, result: AssetResult, run_id: str) -> dict:
    # Between here and the manifest the asset counts as not whole: of several folders some may be new, some old.
    store.forget(asset.name)
    for output, place in asset.outputs.items():
        store.publish(request.assets[asset.stage].outputs[output], place)
    versions = {"/".join(dep): (store.read_manifest("/".join(dep)) or {}).get("data_version") for dep in asset.deps}
    return store.write_manifest(
        asset.name,
        data_version=result.data_version,
        code_version=asset.code_version,
        fields=asset.fields,
        spec_hash=spec_hash(asset.fields),
        outputs=asset.outputs,
        inputs=versions,
        metrics=result.metrics,
        plots=result.plots,
        checks={name: outcome.model_dump() for name, outcome in result.checks.items()},
        provenance={
            "run_id": run_id,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **({"seed": seed} if (seed := seed_of(asset.fields)) is not None else {}),
            "packages": result.packages,
            **git_state(),
        },
    )
