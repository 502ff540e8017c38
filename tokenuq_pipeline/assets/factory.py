"""From nodes to a Dagster asset definition whose work is one child process.

What every stage shares; the stages themselves, with their dependencies, are in the files beside.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from tokenuq_ml.config import Config
from tokenuq_ml.stages import AssetRequest, StageRequest
from tokenuq_pipeline import metadata
from tokenuq_pipeline.launcher import StageLauncher
from tokenuq_pipeline.nodes import OUTPUTS, Node
from tokenuq_pipeline.resources import StoreResource
from tokenuq_pipeline.store import Store
from tokenuq_pipeline.versions import code_version_of, fields_of


@dataclass(frozen=True)
class Stage:
    """A node with what it is made from and what a newcomer should know of it."""

    node: Node
    deps: tuple[Node, ...]
    description: str
    kinds: frozenset[str]


def asset_spec(config: Config, stage: Stage) -> dg.AssetSpec:
    """The Dagster face of a stage."""
    node = stage.node
    tags = {"study": node.study, "ablation": node.ablation}
    return dg.AssetSpec(
        key=node.key, deps=[dep.key for dep in dict.fromkeys(stage.deps)], description=stage.description,
        group_name=node.group, kinds={"python", *stage.kinds}, code_version=code_version_of(config, node),
        tags={key: value for key, value in tags.items() if value}, metadata=metadata.definition_metadata(node),
    )


def child_process_assets(config: Config, name: str, entrypoint: str, stages: list[Stage],
                         inputs: Callable[[Store, set[str]], dict[str, Path]]) -> dg.AssetsDefinition:
    """Assets that one child process makes, all or any of them.

    `inputs(store, stages)` gives the files that the child reads to make the given stages.
    """
    by_key = {stage.node.key: stage for stage in stages}

    @dg.multi_asset(name=name, specs=[asset_spec(config, stage) for stage in stages], can_subset=len(stages) > 1)
    def compute(context: dg.AssetExecutionContext, launcher: StageLauncher, store: StoreResource):
        chosen = [stage for stage in stages if stage.node.key in context.selected_asset_keys]
        home = store.store
        staging = home.new_staging()
        try:
            request = _request(config, entrypoint, chosen, home, staging, inputs)
            for result in launcher.run(context, request, staging):
                stage = by_key[next(s.node.key for s in chosen if s.node.stage == result.stage)]
                asset = request.assets[result.stage]
                manifest = home.publish(
                    stage.node, {output: Path(folder) for output, folder in asset.outputs.items()},
                    data_version=result.data_version, code_version=asset.code_version, spec_hash=asset.spec_hash,
                    fields=asset.fields, inputs=_input_versions(home, stage), metrics=result.metrics)
                yield dg.MaterializeResult(
                    asset_key=stage.node.key, data_version=dg.DataVersion(result.data_version),
                    metadata=metadata.materialisation_metadata(home, stage.node, result, manifest))
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    return compute


def _request(config: Config, entrypoint: str, chosen: list[Stage], store: Store, staging: Path,
             inputs: Callable) -> StageRequest:
    assets = {}
    for stage in chosen:
        node = stage.node
        outputs = {output: staging / node.stage / output for output in OUTPUTS[node.stage]}
        for folder in outputs.values():
            folder.mkdir(parents=True)
        assets[node.stage] = AssetRequest(
            fields=fields_of(config, node), code_version=code_version_of(config, node),
            outputs={output: str(folder) for output, folder in outputs.items()})
    node = chosen[0].node
    return StageRequest(
        entrypoint=entrypoint, study=node.study, ablation=node.ablation, assets=assets,
        inputs={name: str(path) for name, path in inputs(store, set(assets)).items()},
        work_dir=str(store.work_dir(node)))


def _input_versions(store: Store, stage: Stage) -> dict[str, str]:
    manifests = {dep.label: store.manifest(dep) for dep in stage.deps}
    return {label: manifest.data_version for label, manifest in manifests.items() if manifest}


