"""The automation condition of cheap assets: rebuild when inputs have changed."""

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
"""The first evaluation of a new asset requests nothing: a job builds it first."""
