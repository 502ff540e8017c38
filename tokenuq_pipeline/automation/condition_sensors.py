"""One sensor per study that evaluates the automation conditions of its cheap assets.

Cheap assets are the analysis and the report. They read tables and load no model.
"""

import dagster as dg


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
