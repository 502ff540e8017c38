"""What a comparison needs of each of its studies."""

from collections.abc import Mapping, Sequence

import dagster as dg

from tokenuq_ml.config.comparison import ComparisonSpec
from tokenuq_ml.config.load import Config
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.shown_studies import config_of
from tokenuq_pipeline.automation.staleness import Key, ancestors, needed_parents, parents_of
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import COMPARISONS


def comparison_key(comparison: str) -> Key:
    """Return the key of a comparison's page."""
    return dg.AssetKey([COMPARISONS, comparison])


def study_targets(
    config: Config, comparison: ComparisonSpec, store: Store, further: Mapping[str, Sequence[str]] | None = None
) -> dict[str, set[Key]]:
    """Return study -> the assets that the comparison needs of it, with models and datasets; in the comparison's order.

    What it reads only if it exists is among them if it does, so that it is brought up to date.

    Args:
        config: all of it.
        comparison: an entry of `comparisons.yaml`.
        store: the store.
        further: study -> ablations that are wanted too.
    """
    part = config_of(config, [], comparisons=[comparison.name])
    assets = {asset.key: asset for asset in assets_by_name(part).values()}
    parents, page = parents_of(assets), comparison_key(comparison.name)
    wanted = {(study, name) for study, names in (further or {}).items() for name in names}
    reads = needed_parents(assets, store)[page] | {key for key in parents[page] if tuple(key.path[:2]) in wanted}
    return {study: ancestors(parents, (key for key in reads if key.path[0] == study)) for study in comparison.studies}
