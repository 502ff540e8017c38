"""What has to be made anew, why, and in which order of runs.

Dagster compares an asset with its direct inputs only, so what follows a changed asset
shows as stale after that one is rebuilt, or not at all where it came out the same. Hence
waves: run what surely has to run, look again. Does not run anything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_spec import AssetCheckKey
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.data_version import (
    CachingStaleStatusResolver,
    StaleCause,
    StaleCauseCategory,
    StaleStatus,
)
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from tokenuq_pipeline.runtime.store import Store

Key = dg.AssetKey
NEVER_MADE = "was never made"


@dataclass(frozen=True)
class Staleness:
    """Stale assets with the reason, and blocking checks that have not passed on what is there now."""

    reasons: dict[Key, str]
    pending_checks: frozenset[AssetCheckKey] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.reasons or self.pending_checks)


@dataclass(frozen=True)
class Wave:
    """What one run is to make and to check; the reasons are of all that is stale."""

    assets: frozenset[Key]
    checks: frozenset[AssetCheckKey]
    reasons: dict[Key, str] = field(default_factory=dict)


def parents_of(graph: AssetGraph) -> dict[Key, set[Key]]:
    """Direct parents, of what can be made."""
    makeable = graph.materializable_asset_keys
    return {key: graph.get(key).parent_keys & makeable for key in makeable}


def study_keys(graph: AssetGraph, study: str) -> set[Key]:
    """The study's own assets and all that they need."""
    return ancestors(parents_of(graph), (key for key in graph.materializable_asset_keys if key.path[0] == study))


def find_wave(graph: AssetGraph, keys: Iterable[Key], instance: dg.DagsterInstance, store: Store) -> Wave | None:
    """The next run that `keys` need; None where all is fresh.

    Checks that are pending come alone and first: beside what is downstream, Dagster would not hold that back for them.
    """
    stale = staleness(graph, keys, instance, store)
    if not stale:
        return None
    if stale.pending_checks:
        return Wave(frozenset(), stale.pending_checks, stale.reasons)
    assets = next_wave(parents_of(graph), stale.reasons)
    checks = frozenset(key for key in graph.asset_check_keys if key.asset_key in assets)
    return Wave(frozenset(assets), checks, stale.reasons)


def staleness(graph: AssetGraph, keys: Iterable[Key], instance: dg.DagsterInstance, store: Store) -> Staleness:
    """What of `keys` is missing, stale by Dagster's record, or not whole in the store."""
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    reasons, pending = {}, set()
    keys = set(keys)
    checks = [key for key in graph.asset_check_keys if key.asset_key in keys and graph.get_check_spec(key).blocking]
    executions = instance.event_log_storage.get_latest_asset_check_execution_by_key(checks)
    for key in keys:
        status = resolver.get_status(key)
        name = key.to_user_string()
        if status == StaleStatus.MISSING:
            reasons[key] = NEVER_MADE
        elif status == StaleStatus.STALE:
            reasons[key] = "; ".join(_in_words(cause) for cause in resolver.get_stale_causes(key))
        elif not store.is_complete(name):
            reasons[key] = "is not whole in the store"
        elif store.read_manifest(name)["data_version"] != resolver.get_current_data_version(key).value:
            reasons[key] = "is not what Dagster recorded last"
    for check in checks:
        if check.asset_key not in reasons and not _passed(executions.get(check), check, instance):
            pending.add(check)
    return Staleness(reasons, frozenset(pending))


def _in_words(cause: StaleCause) -> str:
    """The cause, with the input that it comes from."""
    if cause.category == StaleCauseCategory.DATA and cause.dependency_asset_key is not None:
        return f"{cause.dependency_asset_key.to_user_string()} has changed"
    return cause.reason


def _passed(execution, check: AssetCheckKey, instance: dg.DagsterInstance) -> bool:
    """Whether the check's last execution passed, on the asset's last materialisation."""
    if execution is None or execution.status != AssetCheckExecutionRecordStatus.SUCCEEDED:
        return False
    target = execution.event.dagster_event.event_specific_data.target_materialization_data
    latest = instance.get_latest_materialization_event(check.asset_key)
    return target is not None and latest is not None and target.run_id == latest.run_id


def next_wave(parents: Mapping[Key, Iterable[Key]], stale: Iterable[Key]) -> set[Key]:
    """What of `stale` runs next.

    An asset runs where it is stale and each parent either runs too, or is fresh with no
    stale ancestor: else its inputs may yet change, or come out the same after all.

    Args:
        parents: direct parents of every asset in question.
    """
    stale = set(stale)
    settled: dict[Key, bool] = {}
    wave: dict[Key, bool] = {}

    def is_settled(key: Key) -> bool:
        if key not in settled:
            settled[key] = key not in stale and all(is_settled(parent) for parent in parents.get(key, ()))
        return settled[key]

    def runs(key: Key) -> bool:
        if key not in wave:
            wave[key] = key in stale and all(runs(parent) or is_settled(parent) for parent in parents.get(key, ()))
        return wave[key]

    return {key for key in stale if runs(key)}


def ancestors(parents: Mapping[Key, Iterable[Key]], keys: Iterable[Key]) -> set[Key]:
    """`keys` and everything upstream of them."""
    found, todo = set(), list(keys)
    while todo:
        key = todo.pop()
        if key not in found:
            found.add(key)
            todo += parents.get(key, ())
    return found


def descendants(parents: Mapping[Key, Iterable[Key]], keys: Iterable[Key]) -> set[Key]:
    """Everything downstream of `keys`, without them."""
    keys, children = set(keys), {}
    for key, above in parents.items():
        for parent in above:
            children.setdefault(parent, set()).add(key)
    return ancestors(children, keys) - keys
