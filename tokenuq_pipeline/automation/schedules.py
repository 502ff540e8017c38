"""One schedule per study: weekly, or as `$TOKENUQ_SCHEDULE` says, rerun what is stale.

Schedules are off until they are switched on in the UI or by `$TOKENUQ_AUTOMATE`.
"""

import os
from collections.abc import Mapping

import dagster as dg

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.automation.reruns import Reruns
from tokenuq_pipeline.runtime.dagster_internals import is_valid_cron_schedule

SCHEDULE_VARIABLE = "TOKENUQ_SCHEDULE"
WEEKLY = "0 3 * * 1"
"""Mondays at 03:00 UTC."""


def cron(environment: Mapping[str, str] = os.environ, variable: str = SCHEDULE_VARIABLE, default: str = WEEKLY) -> str:
    """Return when schedules tick, as a cron expression.

    Args:
        environment: holds the variable, or not.
        variable: name of the variable.
        default: its value if it is not set.

    Raises:
        InputError: the variable is not a cron expression.
    """
    text = environment.get(variable) or default
    if not is_valid_cron_schedule(text):
        raise InputError(f"{variable}: {text!r} is not a cron expression; an example is {WEEKLY!r}, Mondays at 3:00")
    return text


def build_schedules(reruns: Reruns, running: bool) -> list[dg.ScheduleDefinition]:
    """Return one schedule per enabled study."""
    when = cron()
    return [_schedule(reruns, study, when, running) for study in reruns.studies]


def _schedule(reruns: Reruns, study: str, when: str, running: bool) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{study}__rerun",
        cron_schedule=when,
        job_name=study,
        default_status=dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED,
        description=f"Rebuilds what is stale in {study}: requests the first wave; the sensor next_wave continues.",
        tags={"study": study},
    )
    def rerun(context: dg.ScheduleEvaluationContext):
        return reruns.first_wave(context, study, "schedule")

    return rerun
