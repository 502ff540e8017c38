"""Which assets are stale, why, and in which order of runs they are rebuilt.

The store's manifests say what is stale (`manifest_staleness.py`): each asset is compared with what it read itself. What
follows a changed asset becomes stale when that asset has been rebuilt with new content, and stays fresh if the content
is unchanged. Hence waves: run what certainly has to run, then look again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import dagster as dg

from tokenuq_ml.config.load import Config
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.integrity_checks import NAME as INTACT
from tokenuq_pipeline.automation.manifest_staleness import NO_MANIFEST, ManifestReader
from tokenuq_pipeline.runtime.dagster_internals import (
    AssetGraph,
    CachingStaleStatusResolver,
    StaleStatus,
    passed_on_latest,
    stale_status_resolver,
)
from tokenuq_pipeline.runtime.store import Store

Key = dg.AssetKey
NEVER_MADE = "was never made"
MAX_WAVES = 20
"""Runs after which a study that is still stale is given up."""


@dataclass(frozen=True)
class Records:
    """The assets of a configuration, and what the store and Dagster record of them."""

    graph: AssetGraph
    """Of Dagster; may hold some studies only."""
    assets: Mapping[Key, StageAsset]
    instance: dg.DagsterInstance
    store: Store

    @classmethod
    def of(cls, graph: AssetGraph, config: Config, instance: dg.DagsterInstance, store: Store) -> "Records":
        """Return the records of all assets of a configuration."""
        return cls(graph, {asset.key: asset for asset in assets_by_name(config).values()}, instance, store)

    @property
    def parents(self) -> dict[Key, set[Key]]:
        """Return everything that each asset reads, drawn or not, without observed files."""
        return parents_of(self.assets)


@dataclass(frozen=True)
class Staleness:
    """Stale assets with the reason, and blocking checks that have not passed on the current version of their asset."""

    reasons: dict[Key, str]
    pending_checks: frozenset[dg.AssetCheckKey] = frozenset()
    unrecorded: frozenset[Key] = frozenset()
    """Fresh in the store, while Dagster has no record of it, or another one: `tokenuq adopt` reports it."""

    def __bool__(self) -> bool:
        return bool(self.reasons or self.pending_checks)


@dataclass(frozen=True)
class Wave:
    """The assets and checks of one run. `reasons` holds all that is stale, also outside the wave."""

    assets: frozenset[Key]
    checks: frozenset[dg.AssetCheckKey]
    reasons: dict[Key, str] = field(default_factory=dict)


def parents_of(assets: Mapping[Key, StageAsset]) -> dict[Key, set[Key]]:
    """Return everything that each asset reads, drawn or not, without observed files."""
    return {key: {Key(path) for path in asset.reads} for key, asset in assets.items()}


def needed_parents(assets: Mapping[Key, StageAsset], store: Store) -> dict[Key, set[Key]]:
    """Return what each asset reads, without the inputs that it does without because they were never made."""
    return {
        key: {
            Key(path)
            for path in asset.reads
            if path not in asset.optional_reads or store.read_manifest("/".join(path)) is not None
        }
        for key, asset in assets.items()
    }


def keys_of(assets: Mapping[Key, StageAsset], name: str, store: Store) -> set[Key]:
    """Return the assets of a study, or of a comparison as `comparisons/<name>`, and everything that they need."""
    key = Key(name.split("/"))
    return ancestors(needed_parents(assets, store), [key]) if key in assets else study_keys(assets, name)


def study_keys(assets: Mapping[Key, StageAsset], study: str) -> set[Key]:
    """Return the assets of a study and everything upstream of them."""
    return ancestors(parents_of(assets), (key for key in assets if key.path[0] == study))


def find_wave(records: Records, keys: Iterable[Key]) -> Wave | None:
    """Return the next run that `keys` need; None if all are fresh.

    Pending checks come first and alone: in a run with assets downstream of them, Dagster would not hold those back.
    """
    stale = staleness(records, keys)
    if not stale:
        return None
    if stale.pending_checks:
        return Wave(frozenset(), stale.pending_checks, stale.reasons)
    assets = next_wave(records.parents, stale.reasons)
    # Not `files_intact`: what a run has just written need not be read again.
    checks = frozenset(key for key in records.graph.asset_check_keys if key.asset_key in assets and key.name != INTACT)
    return Wave(frozenset(assets), checks, stale.reasons)


def staleness(records: Records, keys: Iterable[Key]) -> Staleness:
    """Return which of `keys` are missing or stale by the store's manifests, and what Dagster does not know yet."""
    resolver, manifests = stale_status_resolver(records.instance, records.graph), ManifestReader(records.store)
    reasons: dict[Key, str] = {}
    unrecorded: set[Key] = set()
    for key in set(keys):
        reason = manifests.why_stale(records.assets[key])
        if reason is not None:
            never = reason.endswith(NO_MANIFEST) and resolver.get_status(key) == StaleStatus.MISSING
            reasons[key] = NEVER_MADE if never else reason
        elif not _is_recorded(key, resolver, manifests):
            unrecorded.add(key)
    checks = _blocking_checks(records, set(keys) - reasons.keys() - unrecorded)
    passed = passed_on_latest(records.instance, checks)
    return Staleness(reasons, frozenset(check for check in checks if not passed[check]), frozenset(unrecorded))


def _is_recorded(key: Key, resolver: CachingStaleStatusResolver, manifests: ManifestReader) -> bool:
    """Return whether Dagster knows the version that the store holds, and takes it for fresh."""
    manifest = manifests.manifest(key.to_user_string())
    return (
        manifest is not None
        and resolver.get_status(key) == StaleStatus.FRESH
        and resolver.get_current_data_version(key).value == manifest.data_version
    )


def _blocking_checks(records: Records, keys: set[Key]) -> list[dg.AssetCheckKey]:
    graph = records.graph
    return [key for key in graph.asset_check_keys if key.asset_key in keys and graph.get_check_spec(key).blocking]


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
