"""A schedule a study: weekly, or as `$TOKENUQ_SCHEDULE` says, rerun what is stale and leave what is fresh.

Off until it is switched on in the UI or by `$TOKENUQ_AUTOMATE`.
"""

import os
from collections.abc import Mapping

import dagster as dg
from dagster._utils.schedules import is_valid_cron_schedule

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.automation.reruns import Reruns

SCHEDULE_VARIABLE = "TOKENUQ_SCHEDULE"
WEEKLY = "0 3 * * 1"
"""Mondays at three in the morning, UTC."""


def cron(environment: Mapping[str, str] = os.environ) -> str:
    """When schedules tick.

    Raises:
        InputError: the variable is no cron expression.
    """
    text = environment.get(SCHEDULE_VARIABLE) or WEEKLY
    if not is_valid_cron_schedule(text):
        raise InputError(
            f"{SCHEDULE_VARIABLE}: {text!r} is no cron expression; for example {WEEKLY!r}, Mondays at 3:00"
        )
    return text


def build_schedules(reruns: Reruns, running: bool) -> list[dg.ScheduleDefinition]:
    """One for each enabled study."""
    when = cron()
    return [_schedule(reruns, study, when, running) for study in reruns.studies]


def _schedule(reruns: Reruns, study: str, when: str, running: bool) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{study}__rerun",
        cron_schedule=when,
        job_name=study,
        default_status=dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED,
        description=f"Reruns what is stale of {study}: the first wave, and with the sensor next_wave on all others.",
        tags={"study": study},
    )
    def rerun(context: dg.ScheduleEvaluationContext):
        return reruns.first_wave(context, study, "schedule")

    return rerun
