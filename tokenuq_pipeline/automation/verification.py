"""The job `verify`, which compares every file with its recorded hash, and its weekly schedule.

The schedule is off until it is switched on in the UI or by `$TOKENUQ_AUTOMATE`.
"""

from collections.abc import Iterable

import dagster as dg

from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.integrity_checks import intact_key
from tokenuq_pipeline.automation.schedules import cron
from tokenuq_pipeline.runtime.console import CONSOLE_CONFIG
from tokenuq_pipeline.runtime.store import Store

JOB = "verify"
SCHEDULE_VARIABLE = "TOKENUQ_VERIFY_SCHEDULE"
WEEKLY = "0 5 * * 0"
"""Sundays at 05:00 UTC."""


def verify_job(assets: Iterable[StageAsset]):
    """Return the job: the check `files_intact` of all assets."""
    return dg.define_asset_job(
        JOB,
        selection=dg.AssetSelection.checks(*(intact_key(asset.key) for asset in assets)),
        description="Reads every file of every asset and compares it with the hash that was recorded when it was made.",
        config=CONSOLE_CONFIG,
    )


def verify_schedule(assets: Iterable[StageAsset], store: Store, running: bool) -> dg.ScheduleDefinition:
    """Return the schedule: weekly, or as `$TOKENUQ_VERIFY_SCHEDULE` says.

    Raises:
        InputError: `TOKENUQ_VERIFY_SCHEDULE` is not a cron expression.
    """
    keys = {asset.name: intact_key(asset.key) for asset in assets}

    @dg.schedule(
        name="verify__weekly",
        cron_schedule=cron(variable=SCHEDULE_VARIABLE, default=WEEKLY),
        job_name=JOB,
        default_status=dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED,
        description="Compares every file with its recorded hash. A damaged asset gets a failed check `files_intact`.",
    )
    def verify(context: dg.ScheduleEvaluationContext):
        made = [keys[name] for name in store.assets() if name in keys]
        if not made:
            return dg.SkipReason("nothing is made")
        return dg.RunRequest(asset_check_keys=made, run_config=CONSOLE_CONFIG)

    return verify
