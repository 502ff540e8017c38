"""One sensor per study that evaluates the automation conditions of its cheap assets, and one per comparison.

Cheap assets are the analysis, the report, and the page of a comparison. They read tables and load no model.
"""

import dagster as dg

from tokenuq_pipeline.automation.jobs import comparison_job
from tokenuq_pipeline.runtime.store_layout import COMPARISONS


def build_comparison_sensors(comparisons: list[str], running: bool) -> list[dg.AutomationConditionSensorDefinition]:
    """Return one sensor per comparison of enabled studies."""
    return [
        dg.AutomationConditionSensorDefinition(
            f"{comparison_job(name)}__automation",
            target=dg.AssetSelection.assets(dg.AssetKey([COMPARISONS, name])),
            run_tags={"comparison": name},
            default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
            description=f"Rebuilds the page of {name} when what it reads of its studies has changed.",
        )
        for name in comparisons
    ]


def build_condition_sensors(studies: list[str], running: bool) -> list[dg.AutomationConditionSensorDefinition]:
    """Return one sensor per enabled study. Its runs have the study's tag, so other reruns wait for them."""
    return [
        dg.AutomationConditionSensorDefinition(
            f"{study}__automation",
            target=dg.AssetSelection.key_prefixes([study]),
            run_tags={"study": study},
            default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
            description=f"Rebuilds the analysis and the report of {study} when their inputs have changed.",
        )
        for study in studies
    ]
