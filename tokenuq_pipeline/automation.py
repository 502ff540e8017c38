"""Cheap assets follow what they are made from by themselves; a sensor a study evaluates their conditions.

Cheap are analysis and report, which read tables and load no model. All else costs minutes to hours, and waits for a
person, a schedule or a changed data file.
"""

import dagster as dg

FOLLOWS_ITS_INPUTS = (
    (
        dg.AutomationCondition.missing()
        | dg.AutomationCondition.code_version_changed()
        | dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    ).since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.in_progress()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
).with_label("follows its inputs")
"""Of a new asset the first evaluation asks for nothing: its first build is a job's."""


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
