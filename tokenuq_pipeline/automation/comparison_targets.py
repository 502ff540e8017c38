"""What a comparison needs of each of its studies."""

import dagster as dg

from tokenuq_ml.config.comparison import ComparisonSpec
from tokenuq_ml.config.load import Config
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.shown_studies import config_of
from tokenuq_pipeline.automation.staleness import Key, ancestors, parents_of
from tokenuq_pipeline.runtime.store_layout import COMPARISONS


def comparison_key(comparison: str) -> Key:
    """Return the key of a comparison's page."""
    return dg.AssetKey([COMPARISONS, comparison])


def study_targets(config: Config, comparison: ComparisonSpec) -> dict[str, set[Key]]:
    """Return study -> the assets that the comparison needs of it, with models and datasets; in the comparison's order.

    Args:
        config: all of it.
        comparison: an entry of `comparisons.yaml`.
    """
    part = config_of(config, [], comparisons=[comparison.name])
    parents = parents_of({asset.key: asset for asset in assets_by_name(part).values()})
    reads = parents[comparison_key(comparison.name)]
    return {study: ancestors(parents, (key for key in reads if key.path[0] == study)) for study in comparison.studies}
