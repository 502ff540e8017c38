"""Report to Dagster what the store holds and is fresh, as materialisations: nothing is computed again.

The store's manifests say what is fresh; Dagster's records follow. They have to catch up where `DAGSTER_HOME` is new,
was lost or is another one than before, where a run was killed between a manifest and its event, and where the edges
that are drawn have changed, which Dagster calls a removed dependency. Publications that a kill has interrupted are
completed first.

Dagster reports assets that are made elsewhere by `report_runless_asset_event`, which is used here. Its event takes the
versions of the asset only as tags; those of a step's own events are given, so that Dagster's staleness agrees.

Two processes may adopt at once: the later event says the same as the earlier.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import dagster as dg

from tokenuq_pipeline.assets import metadata
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.checks import TableCheck
from tokenuq_pipeline.assets.integrity_checks import NAME as FILES_INTACT
from tokenuq_pipeline.assets.integrity_checks import files_intact
from tokenuq_pipeline.automation.explain import explain
from tokenuq_pipeline.automation.staleness import Key, Records, staleness
from tokenuq_pipeline.runtime.bucket_store import BucketStore, damaged_files
from tokenuq_pipeline.runtime.dagster_internals import (
    Recorded,
    check_evaluation,
    last_recorded,
    version_tags,
)
from tokenuq_pipeline.runtime.data_files import ObservedFiles, observation, observed_version
from tokenuq_pipeline.runtime.leases import Leases
from tokenuq_pipeline.runtime.manifest import Manifest

Checks = Mapping[Key, list[TableCheck]]


@dataclass
class Adoption:
    """What was reported to Dagster, and what was not, with the reason."""

    adopted: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Fresh in the store, but not reported."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Of those: assets with a file that differs from its manifest."""
    stale: dict[str, str] = field(default_factory=dict)
    """Assets that a run makes again. Missing ones are among them."""
    recovered: dict[str, str] = field(default_factory=dict)
    """Assets whose publication was interrupted, and what became of it; looked at first."""
    failed_checks: list[str] = field(default_factory=list)
    """Blocking checks that have not passed, as `<asset>: <check>: <what is wrong>`."""


def counted(assets: int) -> str:
    """Return a number of assets in words."""
    return f"{assets} asset{'' if assets == 1 else 's'}"


def checks_by_asset(checks: Iterable[TableCheck]) -> Checks:
    """Return the checks of each asset."""
    found: dict[Key, list[TableCheck]] = {}
    for check in checks:
        found.setdefault(check.key.asset_key, []).append(check)
    return found


def adopt(records: Records, keys: Iterable[Key], checks: Checks | None = None, verify: bool = True) -> Adoption:
    """Report those of `keys` that are fresh in the store and that Dagster does not know, in the order of the graph.

    Args:
        records: the assets, the store and the instance.
        keys: what to look at.
        checks: the checks that are evaluated on adopted assets, in addition to those of their stages. None: neither
            are; they are pending then, as after a run that was killed before them, and the next run evaluates them.
        verify: compare the files with their recorded hashes. A file that was read before is not read again.
    """
    keys, recovered = set(keys), records.store.recover()
    found = staleness(records, keys)
    reasons = ((key, found.reasons[key]) for key in records.assets if key in found.reasons)
    result = Adoption(
        stale={key.to_user_string(): explain(reason, records.assets[key], records.store) for key, reason in reasons},
        recovered={asset: str(outcome) for asset, outcome in recovered.items()},
    )
    if found.unrecorded:
        adopter = _Adopter(records, checks, verify, result)
        for key in (key for key in records.assets if key in found.unrecorded):
            adopter.adopt(records.assets[key])
    return result


class _Adopter:
    """Adopts one asset after the other."""

    def __init__(self, records: Records, checks: Checks | None, verify: bool, result: Adoption):
        self._instance, self._store = records.instance, records.store
        self._records, self._checks, self._verify, self._result = records, checks, verify, result
        self._known: dict[Key, Recorded] = {}

    def adopt(self, asset: StageAsset) -> None:
        """Report an asset and its checks, or note why not."""
        manifest = self._store.read_manifest(asset.name)
        reason = "its manifest was just replaced" if manifest is None else self._why_not(asset, manifest)
        if reason is not None or manifest is None:
            self._result.refused[asset.name] = reason or ""
            return
        try:
            shown = {**metadata.materialization(asset, manifest, self._store), **_origin(manifest)}
        except Exception as error:
            # Possible only where files are compared by size. The UI starts anyway, and a run finds the damage.
            self._result.refused[asset.name] = f"cannot be read: {error}"
            return
        inputs = {Key(path): self._recorded(Key(path)) for path in asset.deps}
        inputs |= {files.key: self._observed(files) for files in asset.observed_files}
        event = dg.AssetMaterialization(
            asset.key,
            description=asset.description,
            metadata=shown,
            tags=version_tags(manifest.data_version, asset.code_version, inputs),
        )
        if self._store.read_manifest(asset.name) != manifest:
            # Another run has published it meanwhile, and reports it itself.
            self._result.refused[asset.name] = "its manifest was just replaced"
            return
        self._instance.report_runless_asset_event(event)
        self._known.pop(asset.key, None)
        self._result.adopted.append(asset.name)
        if self._checks is not None:
            self._evaluate(asset)

    def _why_not(self, asset: StageAsset, manifest: Manifest) -> str | None:
        """Return why an asset that is fresh in the store is not reported now."""
        if (owner := Leases(self._store.home).holder(asset.name)) is not None:
            return f"{owner.described} is making it again"
        if self._verify:
            if wrong := damaged_files(self._store, manifest):
                self._result.damaged[asset.name] = wrong[0]
                return self._result.damaged[asset.name]
        for path in asset.deps:
            # Dagster compares with what it has recorded of the inputs: they come first.
            name, recorded = "/".join(path), self._recorded(Key(path))
            if recorded.data_version != manifest.input_data_versions.get(name):
                return f"waits for {name}, which is not up to date"
        return None

    def _recorded(self, key: Key) -> Recorded:
        """Return what Dagster has recorded of an asset; asked once, and again after it was reported."""
        if key not in self._known:
            self._known[key] = last_recorded(self._instance, key)
        return self._known[key]

    def _observed(self, files: ObservedFiles) -> Recorded:
        """Return what Dagster has recorded of the user's files, after it was told their version."""
        version = files.version(self._store)
        if version is not None and observed_version(self._instance, files.spec) != version:
            self._instance.report_runless_asset_event(observation(files.spec, version))
        return last_recorded(self._instance, files.key)

    def _evaluate(self, asset: StageAsset) -> None:
        """Evaluate and report the checks of an asset that has been reported."""
        graph, target = self._records.graph, self._recorded(asset.key)
        for key, evaluate in self._evaluations(asset):
            if key not in graph.asset_check_keys:
                continue
            blocking = graph.get_check_spec(key).blocking
            try:
                outcome = evaluate()
            except Exception as error:
                # As in a run, where an error fails the step of the check and nothing else.
                outcome = dg.AssetCheckResult(passed=False, description=f"could not be evaluated: {error}")
            self._instance.report_runless_asset_event(check_evaluation(key, outcome, blocking, target))
            if blocking and not outcome.passed:
                self._result.failed_checks.append(f"{asset.name}: {key.name}: {outcome.description}")

    def _evaluations(self, asset: StageAsset) -> Iterator[tuple[dg.AssetCheckKey, Callable[[], dg.AssetCheckResult]]]:
        store = self._store
        for own in asset.checks:
            yield dg.AssetCheckKey(asset.key, own.name), lambda check=own: check.evaluate(store)
        for other in (self._checks or {}).get(asset.key, []):
            yield other.key, lambda check=other: check.evaluate(store)
        if self._verify and not isinstance(self._store, BucketStore):
            yield dg.AssetCheckKey(asset.key, FILES_INTACT), lambda: files_intact(store, asset.name)


def _origin(manifest: Manifest) -> dict[str, bool | str]:
    """Return metadata that tells an adopted materialisation from one that was just made."""
    made = manifest.provenance
    known = {"made_by_run": made.run_id, "made_at": made.made_at}
    return {"adopted": True, **{name: value for name, value in known.items() if value is not None}}
