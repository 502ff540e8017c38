"""One asset of the graph as plain data, and the Dagster asset built from it.

Knows how a stage is run (request, child, publication, record); does not know which
stages there are, nor how a child is started (`launcher.py`).
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from tokenuq_ml.specs import spec_hash
from tokenuq_ml.stages import AssetRequest, AssetResult, StageRequest
from tokenuq_pipeline import metadata
from tokenuq_pipeline.store import Store
from tokenuq_pipeline.versions import code_version, data_version

REFERENCES = ("base", "teacher")
"""Rows of the report that no ablation makes."""


@dataclass(frozen=True)
class StageCheck:
    """A blocking check that runs inside the stage's own op, right after its asset is published."""

    name: str
    description: str
    evaluate: Callable[[Store], dg.AssetCheckResult]


@dataclass(frozen=True)
class StageAsset:
    """What one asset is made from, by what, and where it lies. Places are relative to the store."""

    stage: str
    path: tuple[str, ...]
    fields: dict
    description: str
    kinds: frozenset[str]
    outputs: dict[str, str]
    inputs: dict[str, str] = field(default_factory=dict)
    deps: tuple[tuple[str, ...], ...] = ()
    table: str | None = None
    study: str | None = None
    ablation: str | None = None
    checks: tuple[StageCheck, ...] = ()

    @property
    def key(self) -> dg.AssetKey:
        return dg.AssetKey(self.path)

    @property
    def name(self) -> str:
        """The key as people write it; also the name of the asset's manifest."""
        return "/".join(self.path)

    @property
    def code_version(self) -> str:
        return code_version(self.stage, self.fields)

    @property
    def group(self) -> str:
        if self.study is None:
            return self.path[0]
        return f"{self.study}__{self.ablation}" if self.ablation else self.study

    @property
    def tables(self) -> dict[str, str]:
        """Output name -> table, of the outputs that are tables."""
        names = {output: metadata.table_of(output) for output in self.outputs}
        return {output: table for output, table in names.items() if table}

    def spec(self, skippable: bool) -> dg.AssetSpec:
        """The asset as Dagster sees it. Owners and automation are left out here, on purpose."""
        tags = {name: value for name, value in (("study", self.study), ("ablation", self.ablation)) if value}
        return dg.AssetSpec(
            self.key,
            deps=[dg.AssetKey(dep) for dep in self.deps],
            description=self.description,
            code_version=self.code_version,
            kinds=set(self.kinds),
            group_name=self.group,
            tags=tags,
            metadata=metadata.definition(self),
            skippable=skippable,
        )


def build_assets(assets: list[StageAsset], entrypoint: str, op_name: str) -> dg.AssetsDefinition:
    """The assets that one child process makes; of several, any subset can be asked for."""
    several = len(assets) > 1

    @dg.multi_asset(
        name=op_name,
        specs=[asset.spec(skippable=several) for asset in assets],
        can_subset=several,
        check_specs=[
            dg.AssetCheckSpec(check.name, asset=asset.key, blocking=True, description=check.description)
            for asset in assets
            for check in asset.checks
        ]
        or None,
        required_resource_keys={"store", "launcher"},
    )
    def stage(context: dg.AssetExecutionContext):
        yield from run_stage(context, assets, entrypoint)

    return stage


def run_stage(context: dg.AssetExecutionContext, assets: list[StageAsset], entrypoint: str) -> Iterator:
    """Run the child for the selected assets; publish and yield each as soon as it is whole."""
    store: Store = context.resources.store
    wanted = {asset.stage: asset for asset in assets if asset.key in context.selected_asset_keys}
    if not wanted:
        # Only checks were asked for: of an asset whose run ended before they were done.
        for asset in assets:
            yield from (_evaluate(check, asset, store) for check in _selected(context, asset))
        return
    _require_inputs(store, wanted)
    with store.staging() as staging:
        request = _request(store, staging, wanted, entrypoint, assets[0].name)
        missing = set(wanted)
        with contextlib.closing(context.resources.launcher.run(context, request, staging)) as results:
            for result in results:
                asset = wanted[result.stage]
                _publish(store, request, asset, result)
                missing.discard(result.stage)
                yield dg.MaterializeResult(
                    asset_key=asset.key,
                    data_version=data_version(result),
                    metadata=metadata.materialization(asset, result, store),
                )
                outcomes = [_evaluate(check, asset, store) for check in _selected(context, asset)]
                yield from outcomes
                if not all(outcome.passed for outcome in outcomes):
                    # Dagster fails the step for it; what the child would make next builds on what is wrong.
                    return
    if missing:
        raise dg.Failure(f"{entrypoint} ended without {', '.join(sorted(missing))}", allow_retries=False)


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


def _publish(store: Store, request: StageRequest, asset: StageAsset, result: AssetResult) -> None:
    # Between here and the manifest the asset counts as not whole: of several folders some may be new, some old.
    store.forget(asset.name)
    for output, place in asset.outputs.items():
        store.publish(request.assets[asset.stage].outputs[output], place)
    versions = {"/".join(dep): (store.read_manifest("/".join(dep)) or {}).get("data_version") for dep in asset.deps}
    store.write_manifest(
        asset.name,
        data_version=result.data_version,
        code_version=asset.code_version,
        fields=asset.fields,
        spec_hash=spec_hash(asset.fields),
        outputs=asset.outputs,
        inputs=versions,
        metrics=result.metrics,
    )
