"""Build Dagster assets from `StageAsset`s, and run the child process that makes them.

A step takes the lease of its assets, writes the request, starts the child by the resource `launcher`, publishes each
result (`publishing.py`), and yields its events.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store.bucket import StoreAway
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_pipeline.assets import metadata
from tokenuq_pipeline.assets.asset import StageAsset, StageCheck
from tokenuq_pipeline.assets.conditions import FOLLOWS_ITS_INPUTS
from tokenuq_pipeline.assets.graph import StageGroup
from tokenuq_pipeline.assets.inputs import AssetPath, Input
from tokenuq_pipeline.assets.publishing import made_meanwhile, publish, versions_read
from tokenuq_pipeline.assets.recorded_inputs import recorded_inputs
from tokenuq_pipeline.assets.tracking import tracking_request
from tokenuq_pipeline.runtime.bucket_checkpoints import carried_checkpoints
from tokenuq_pipeline.runtime.bucket_store import address_of, fetch, look_again
from tokenuq_pipeline.runtime.dagster_internals import selected_checks
from tokenuq_pipeline.runtime.full_disks import full_disks_in_words
from tokenuq_pipeline.runtime.instance import ACCELERATOR
from tokenuq_pipeline.runtime.launcher import StageFailure, StageLauncher
from tokenuq_pipeline.runtime.leases import Lease, LeaseLost
from tokenuq_pipeline.runtime.manifest import Manifest
from tokenuq_pipeline.runtime.step_processes import ending_with_run
from tokenuq_pipeline.runtime.store import Store

RETRIES, RETRY_DELAY_S = 2, 2.0
"""For a child that crashed. It resumes from its checkpoint, so a crash at the same place costs little."""


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


def build_assets(group: StageGroup) -> dg.AssetsDefinition:
    """Return the assets that one child process makes. A run can ask for any subset of them."""
    # With checks of its own too: if a run ends between an asset and its check, the next one asks for the check alone.
    in_parts = len(group.assets) > 1 or any(asset.checks for asset in group.assets)

    @dg.multi_asset(
        name=group.op,
        specs=[asset_spec(asset, skippable=in_parts) for asset in group.assets],
        can_subset=in_parts,
        check_specs=[
            dg.AssetCheckSpec(check.name, asset=asset.key, blocking=True, description=check.description)
            for asset in group.assets
            for check in asset.checks
        ]
        or None,
        required_resource_keys={"store", "launcher"},
        pool=ACCELERATOR if any(asset.needs_model for asset in group.assets) else None,
    )
    def stage(context: dg.AssetExecutionContext):
        with (
            ending_with_run(context),
            full_disks_in_words(context.resources.store.home),
            _repeated_when_away(context),
        ):
            yield from run_stage(context, group)

    return stage


def run_stage(context: dg.AssetExecutionContext, group: StageGroup) -> Iterator:
    """Run the child for the selected assets; publish each as soon as it is complete, and yield its events.

    Waits while another run makes one of them, and uses what that run has made.

    Raises:
        RetryRequested: the child crashed, or another run has taken over. (An op's retry policy would also retry what a
            person cancels.)
    """
    store: Store = context.resources.store
    wanted = {asset.stage: asset for asset in group.assets if asset.key in context.selected_asset_keys}
    if not wanted:
        # Only checks were asked for: the run that made their asset ended before they were done.
        for asset in group.assets:
            yield from _checks(context, asset, store)
        return
    makes = [asset.name for asset in wanted.values()]
    with store.leases.hold(group.assets[0].name, context.log.info, makes) as lease:
        # The run that held the lease before may have been killed while it published.
        for name, outcome in store.recover(held=[asset.name for asset in group.assets]).items():
            context.log.info(f"{name}: {outcome}")
        look_again(store)
        for asset, manifest in made_meanwhile(context, store, wanted):
            del wanted[asset.stage]
            if manifest.provenance.run_id != context.run_id:
                context.log.info(f"{asset.name} was made by another run meanwhile, and is used as it is")
            events = list(_events(context, asset, manifest, store))
            yield from events
            if not all(event.passed for event in events[1:]):
                return
        if wanted:
            _require_inputs(store, wanted)
            yield from _run_child(context, group, wanted, store, lease)


def _run_child(
    context: dg.AssetExecutionContext, group: StageGroup, wanted: dict[str, StageAsset], store: Store, lease: Lease
) -> Iterator:
    """Run the child for the wanted assets, by stage."""
    wait = RETRY_DELAY_S * 2**context.retry_number
    with store.staging() as staging:
        _require_publishable(store, wanted, staging)
        request = _request(store, staging, wanted, group)
        carried = _is_carried(context.resources.launcher, request)
        if not carried:
            _fetch_inputs(store, wanted)
        read = {asset.stage: versions_read(store, asset) for asset in wanted.values()}
        request.tracking = tracking_request(store, group.report_to, wanted, request, read, context.run_id)
        missing = set(wanted)
        try:
            with (
                contextlib.nullcontext() if carried else carried_checkpoints(store, lease, context.log.info),
                contextlib.closing(context.resources.launcher.run(context, request, staging, lease)) as results,
            ):
                for result in results:
                    asset = wanted[result.stage]
                    manifest = publish(store, lease, request, asset, result, context.run_id, read[result.stage])
                    # What the child makes next reads what it has just made.
                    for versions in (one for one in read.values() if asset.name in one):
                        versions[asset.name] = manifest.data_version
                    missing.discard(result.stage)
                    events = list(_events(context, asset, manifest, store))
                    yield from events
                    if not all(event.passed for event in events[1:]):
                        # Dagster fails the step. What the child would make next builds on a wrong asset.
                        return
        except StageFailure as failure:
            if not failure.crashed:
                raise
            raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=wait) from failure
        except LeaseLost as lost:
            # The next attempt waits for the other run, and uses what it has made.
            raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=wait) from lost
    if missing:
        raise dg.Failure(f"{group.entrypoint} ended without {', '.join(sorted(missing))}", allow_retries=False)


def _events(context: dg.AssetExecutionContext, asset: StageAsset, manifest: Manifest, store: Store) -> Iterator:
    """Yield the materialization of a published asset, then its own checks."""
    yield dg.MaterializeResult(
        asset_key=asset.key,
        data_version=dg.DataVersion(manifest.data_version),
        metadata=metadata.materialization(asset, manifest, store),
    )
    yield from _checks(context, asset, store)


def _checks(context: dg.AssetExecutionContext, asset: StageAsset, store: Store) -> Iterator[dg.AssetCheckResult]:
    selected = selected_checks(context)
    for check in asset.checks:
        if dg.AssetCheckKey(asset.key, check.name) in selected:
            yield _evaluate(check, asset, store)


def _evaluate(check: StageCheck, asset: StageAsset, store: Store) -> dg.AssetCheckResult:
    return check.evaluate(store)._replace(asset_key=asset.key, check_name=check.name)


def _require_publishable(store: Store, wanted: dict[str, StageAsset], staging: Path) -> None:
    """Fail the step, before anything is computed, if its results could not be moved into place."""
    try:
        store.check_publishable([place for asset in wanted.values() for place in asset.outputs.values()], staging)
    except InputError as error:
        raise dg.Failure(str(error), allow_retries=False) from None


def _require_inputs(store: Store, wanted: dict[str, StageAsset]) -> None:
    """Fail the step if an input has no manifest, or a damaged one. The child looks at the files."""
    made = {asset.path for asset in wanted.values()}
    read = dict.fromkeys(dep for asset in wanted.values() for dep in asset.reads if dep not in made)
    if damaged := next(filter(None, (store.damaged_manifest("/".join(dep)) for dep in read)), None):
        raise dg.Failure(damaged, allow_retries=False)
    optional = {dep for asset in wanted.values() for dep in asset.optional_reads}
    missing = ["/".join(dep) for dep in read if dep not in optional and not _was_made(store, dep)]
    if missing:
        message = f"{address_of(store)}: missing inputs: {', '.join(missing)}; materialise them first"
        raise dg.Failure(message, allow_retries=False)


def _was_made(store: Store, asset: AssetPath) -> bool:
    return store.read_manifest("/".join(asset)) is not None


def _is_left_out(store: Store, item: Input) -> bool:
    """Return whether a stage does not read an input, because it may be missing and is."""
    return item.optional and not _was_made(store, item.asset)


def _fetch_inputs(store: Store, wanted: dict[str, StageAsset]) -> None:
    """Bring what the child reads to this machine; fail the step if a file is missing or damaged."""
    made = {place for asset in wanted.values() for place in asset.outputs.values()}
    for item in (item for asset in wanted.values() for item in asset.inputs if item.path not in made):
        if _is_left_out(store, item):
            continue
        folder = f"{item.path}/"
        try:
            fetch(store, "/".join(item.asset), lambda path, folder=folder: path.startswith(folder))
        except StoreAway:
            raise
        except InputError as error:
            raise dg.Failure(str(error), allow_retries=False) from None


def _is_carried(launcher: object, request: StageRequest) -> bool:
    """Return whether the stage's own machine fetches what it reads and sends its checkpoints."""
    return isinstance(launcher, StageLauncher) and launcher.carries(request)


@contextlib.contextmanager
def _repeated_when_away(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Repeat the step if the service that holds the store does not answer. A training resumes from its checkpoint."""
    try:
        yield
    except StoreAway as away:
        wait = RETRY_DELAY_S * 2**context.retry_number
        raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=wait) from away


def _request(store: Store, staging: Path, wanted: dict[str, StageAsset], group: StageGroup) -> StageRequest:
    """Return the request for the wanted assets, by stage, with an empty folder for each output."""
    requests, made = {}, set()
    for stage, asset in wanted.items():
        folders = {output: staging / stage / output for output in asset.outputs}
        for folder in folders.values():
            folder.mkdir(parents=True)
        made |= set(asset.outputs.values())
        requests[stage] = AssetRequest(
            fields=asset.fields,
            code_version=asset.code_version,
            outputs={output: str(folder) for output, folder in folders.items()},
            places=asset.outputs,
        )
    inputs = {
        item.name: str(store.path(item.path))
        for asset in wanted.values()
        for item in asset.inputs
        if item.path not in made and not _is_left_out(store, item)
    }
    for asset in wanted.values():
        inputs |= asset.files
    first = next(iter(wanted.values()))
    return StageRequest(
        entrypoint=group.entrypoint,
        study=first.study,
        ablation=first.ablation,
        assets=requests,
        inputs=inputs,
        recorded=recorded_inputs(store, wanted.values()),
        work_dir=str(store.work_dir(group.assets[0].name)),
        resources=group.resources,
        processes=group.processes,
        sharding=group.sharding,
    )
