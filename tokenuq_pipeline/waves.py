"""What is stale, and in which waves to recompute it.

Dagster compares an asset with its direct inputs, so that what follows turns stale only when
its input has been rebuilt with another content: reruns go in waves until nothing is stale.
Pure functions but for `stale_keys`, which asks the instance and the store.
"""

from collections.abc import Mapping

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContext

from tokenuq_pipeline.store import Store


class _InstanceContext(LoadingContext):
    """The least that Dagster's resolver asks of its surroundings."""

    def __init__(self, instance: dg.DagsterInstance):
        self._instance, self._loaders = instance, {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self) -> dict:
        return self._loaders


def stale_keys(defs: dg.Definitions, instance: dg.DagsterInstance, store: Store, nodes: Mapping) -> dict:
    """Asset key -> why it is to be made again, for the given `key -> Node`.

    Beside Dagster's word, an asset is to be made again when the store does not hold what
    the last materialisation recorded: deleted files, or another `TOKENUQ_HOME`.
    """
    resolver = CachingStaleStatusResolver(instance, defs.resolve_asset_graph(), _InstanceContext(instance))
    stale = {}
    for key, node in nodes.items():
        status = resolver.get_status(key)
        if status == StaleStatus.MISSING:
            stale[key] = "never materialised"
        elif status == StaleStatus.STALE:
            stale[key] = "; ".join(cause.reason for cause in resolver.get_stale_causes(key))
        else:
            manifest = store.manifest(node)
            if manifest is None:
                stale[key] = "its files are not in the store"
            elif manifest.data_version != resolver.get_current_data_version(key).value:
                stale[key] = "the store holds another version of it"
    return stale


def next_wave(stale: set, parents: Mapping) -> set:
    """The stale assets that can be made now, with nothing made twice.

    An asset belongs to the wave when each of its parents does too, or is fresh with all of
    its ancestors: behind a fresh asset whose own input is about to be rebuilt, it is not yet
    known whether there is anything to do.
    """
    wave, settled = set(), {}

    def is_settled(key) -> bool:
        """Fresh, and so is everything upstream."""
        if key not in settled:
            settled[key] = key not in stale and all(is_settled(parent) for parent in parents.get(key, ()))
        return settled[key]

    def in_wave(key) -> bool:
        return key in stale and all(in_wave(parent) or is_settled(parent) for parent in parents.get(key, ()))

    wave.update(key for key in stale if in_wave(key))
    return wave
