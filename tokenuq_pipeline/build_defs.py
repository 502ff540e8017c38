"""Build Dagster's `Definitions` from a configuration, or from the part of one that is asked for."""

from pathlib import Path

import dagster as dg

from tokenuq_ml.config.load import Config
from tokenuq_pipeline.assets.checks import build_checks
from tokenuq_pipeline.assets.graph import stage_groups
from tokenuq_pipeline.assets.integrity_checks import build_integrity_checks
from tokenuq_pipeline.assets.observed_files import file_assets
from tokenuq_pipeline.assets.run_stage import build_assets
from tokenuq_pipeline.automation.condition_sensors import build_comparison_sensors, build_condition_sensors
from tokenuq_pipeline.automation.exports import build_export_jobs, build_export_schedules
from tokenuq_pipeline.automation.jobs import build_jobs
from tokenuq_pipeline.automation.reruns import Reruns, starts_running
from tokenuq_pipeline.automation.schedules import build_schedules
from tokenuq_pipeline.automation.sensors import build_sensors
from tokenuq_pipeline.automation.verification import verify_job, verify_schedule
from tokenuq_pipeline.runtime.bucket_store import open_store
from tokenuq_pipeline.runtime.console import compact_logger
from tokenuq_pipeline.runtime.fixed_config import fixed_executor, fixed_io_manager, fixed_resource
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.launchers.choice import chosen_backend
from tokenuq_pipeline.runtime.run_owner import owned


def build_defs(
    config: Config,
    home: Path | None = None,
    launcher: dg.ConfigurableResource | StageLauncher | None = None,
    executor: dg.ExecutorDefinition = dg.in_process_executor,
) -> dg.Definitions:
    """Return all assets, checks, jobs, schedules and sensors of a configuration.

    Args:
        config: models, datasets, studies and ablations.
        home: the store; default: `$TOKENUQ_HOME`.
        launcher: runs heavy stages; default: the one that `$TOKENUQ_LAUNCHER` names.
        executor: runs the steps of a run.

    Raises:
        InputError: an environment variable that schedules and sensors read has a wrong value.
    """
    store, launcher = open_store(home), launcher or StageLauncher(backend=chosen_backend())
    reruns, running, jobs = Reruns(config, store), starts_running(), [*build_jobs(config), *build_export_jobs(config)]
    groups = stage_groups(config)
    makeable = [asset for group in groups for asset in group.assets]
    return dg.Definitions(
        assets=[*file_assets(config), *(build_assets(group) for group in groups)],
        asset_checks=[*build_checks(config), build_integrity_checks(makeable)],
        jobs=[*jobs, verify_job(makeable)],
        schedules=[
            *build_schedules(reruns, running),
            *build_export_schedules(config, store, running),
            verify_schedule(makeable, store, running),
        ],
        sensors=[
            *build_sensors(reruns, [job for job in jobs if job.name in reruns.studies], running),
            *build_condition_sensors(reruns.studies, running),
            *build_comparison_sensors(reruns.comparisons, running),
        ],
        resources={
            "store": fixed_resource(store),
            "launcher": fixed_resource(launcher) if isinstance(launcher, StageLauncher) else launcher,
            "io_manager": fixed_io_manager(),
        },
        executor=owned(fixed_executor(executor), store.home),
        loggers={"console": compact_logger},
    )
