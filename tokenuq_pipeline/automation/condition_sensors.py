"""One sensor per study that evaluates the automation conditions of its cheap assets.

Cheap assets are the analysis and the report, which read tables and load no model.
"""

import dagster as dg


def build_automation(studies: list[str], running: bool) -> list[dg.AutomationConditionSensorDefinition]:
    """One sensor for each enabled study; its runs bear the study's tag, so that other reruns wait for them."""
    return [
        dg.AutomationConditionSensorDefinition(
            f"{study}__automation",
            target=dg.AssetSelection.key_prefixes([study]),
            run_tags={"study": study},
            default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
            description=f"Rebuilds analysis and report of {study} when what they are made from has changed.",
        )
        for study in studies
    ]
