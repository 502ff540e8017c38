"""Which assets are stale, why, and in which order of runs they are rebuilt.

Dagster compares an asset with its direct inputs only. What follows a changed asset becomes stale when that asset has
been rebuilt with new content, and stays fresh if the content is unchanged. Hence waves: run what certainly has to run,
then look again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import dagster as dg

from tokenuq_pipeline.runtime.dagster_internals import (
    AssetGraph,
    StaleCause,
    StaleStatus,
    passed_on_latest,
    stale_status_resolver,
    upstream_with_new_data,
)
from tokenuq_pipeline.runtime.store import Store

Key = dg.AssetKey
NEVER_MADE = "was never made"
MAX_WAVES = 20
"""Runs after which a study that is still stale is given up."""


@dataclass(frozen=True)
class Staleness:
    """Stale assets with the reason, and blocking checks that have not passed on the current version of their asset."""

    reasons: dict[Key, str]
    pending_checks: frozenset[dg.AssetCheckKey] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.reasons or self.pending_checks)


@dataclass(frozen=True)
class Wave:
    """The assets and checks of one run. `reasons` holds all that is stale, also outside the wave."""

    assets: frozenset[Key]
    checks: frozenset[dg.AssetCheckKey]
    reasons: dict[Key, str] = field(default_factory=dict)


def parents_of(graph: AssetGraph) -> dict[Key, set[Key]]:
    """Return the direct inputs of every asset, without observed files."""
    makeable = graph.materializable_asset_keys
    return {key: graph.get(key).parent_keys & makeable for key in makeable}


def study_keys(graph: AssetGraph, study: str) -> set[Key]:
    """Return the assets of a study and everything upstream of them."""
    return ancestors(parents_of(graph), (key for key in graph.materializable_asset_keys if key.path[0] == study))


def find_wave(graph: AssetGraph, keys: Iterable[Key], instance: dg.DagsterInstance, store: Store) -> Wave | None:
    """Return the next run that `keys` need; None if all are fresh.

    Pending checks come first and alone: in a run with assets downstream of them, Dagster would not hold those back.
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
    """Return which of `keys` are missing, stale by Dagster's records, or incomplete in the store."""
    resolver = stale_status_resolver(instance, graph)
    keys = set(keys)
    found = {key: _reason(key, resolver, store) for key in keys}
    reasons = {key: reason for key, reason in found.items() if reason is not None}
    checks = [
        check
        for check in graph.asset_check_keys
        if check.asset_key in keys and check.asset_key not in reasons and graph.get_check_spec(check).blocking
    ]
    passed = passed_on_latest(instance, checks)
    return Staleness(reasons, frozenset(check for check in checks if not passed[check]))


def _reason(key: Key, resolver, store: Store) -> str | None:
    """Return why one asset is stale; None if it is fresh."""
    status, name = resolver.get_status(key), key.to_user_string()
    if status == StaleStatus.MISSING:
        return NEVER_MADE
    if status == StaleStatus.STALE:
        return "; ".join(_cause(cause) for cause in resolver.get_stale_causes(key))
    incomplete = store.incomplete_because(name)
    if incomplete is not None:
        return f"is incomplete in the store: {incomplete}"
    if store.data_version(name) != resolver.get_current_data_version(key).value:
        return "differs in the store from what Dagster recorded last"
    return None


def _cause(cause: StaleCause) -> str:
    upstream = upstream_with_new_data(cause)
    return cause.reason if upstream is None else f"{upstream.to_user_string()} has changed"


def next_wave(parents: Mapping[Key, Iterable[Key]], stale: Iterable[Key]) -> set[Key]:
    """Return which of the stale assets the next run makes.

    An asset is made if each of its parents is made in the same run, or is fresh and has no stale ancestor. Otherwise
    its inputs may still change, or be rebuilt with the same content.

    Args:
        parents: direct parents of every asset.
        stale: assets to be made.
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
    """Return `keys` and everything upstream of them."""
    found, todo = set(), list(keys)
    while todo:
        key = todo.pop()
        if key not in found:
            found.add(key)
            todo += parents.get(key, ())
    return found


def descendants(parents: Mapping[Key, Iterable[Key]], keys: Iterable[Key]) -> set[Key]:
    """Return everything downstream of `keys`, without `keys` themselves."""
    keys, children = set(keys), {}
    for key, above in parents.items():
        for parent in above:
            children.setdefault(parent, set()).add(key)
    return ancestors(children, keys) - keys
