"""Dagster's `Definitions`, built from the configuration. Tests call `build_defs`; Dagster loads `defs`."""

import os
from pathlib import Path

import dagster as dg

from tokenuq_ml.config.load import Config, load_config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.checks import build_checks
from tokenuq_pipeline.assets.graph import stage_groups
from tokenuq_pipeline.assets.observed_files import file_assets
from tokenuq_pipeline.assets.run_stage import build_assets
from tokenuq_pipeline.automation.condition_sensors import build_condition_sensors
from tokenuq_pipeline.automation.jobs import build_jobs
from tokenuq_pipeline.automation.reruns import Reruns, starts_running
from tokenuq_pipeline.automation.schedules import build_schedules
from tokenuq_pipeline.automation.sensors import build_sensors
from tokenuq_pipeline.runtime.console import compact_logger
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.paths import config_folders, store_home
from tokenuq_pipeline.runtime.store import Store

EXECUTOR_VARIABLE = "TOKENUQ_EXECUTOR"


def build_defs(
    config: Config,
    home: Path | None = None,
    launcher: dg.ConfigurableResource | None = None,
    executor: dg.ExecutorDefinition = dg.in_process_executor,
) -> dg.Definitions:
    """Return all assets, checks, jobs, schedules and sensors of a configuration.

    Args:
        config: models, datasets, studies and ablations.
        home: the store; default: `$TOKENUQ_HOME`.
        launcher: runs heavy stages; default: child processes of this one.
        executor: runs the steps of a run.

    Raises:
        InputError: an environment variable that schedules and sensors read has a wrong value.
    """
    store = Store(home or store_home())
    reruns, running, jobs = Reruns(config, store), starts_running(), build_jobs(config)
    stages = [build_assets(group) for group in stage_groups(config)]
    return dg.Definitions(
        assets=[*file_assets(config), *stages],
        asset_checks=build_checks(config),
        jobs=jobs,
        schedules=build_schedules(reruns, running),
        sensors=[
            *build_sensors(reruns, [job for job in jobs if job.name in reruns.studies], running),
            *build_condition_sensors(reruns.studies, running),
        ],
        resources={"store": store, "launcher": launcher or StageLauncher()},
        executor=executor,
        loggers={"console": compact_logger},
    )


def chosen_executor() -> dg.ExecutorDefinition:
    """Return the executor for the UI's runs, as `$TOKENUQ_EXECUTOR` names it.

    By default steps run in the process of their run: the heavy work is in child processes anyway, and a process per
    step would only import Dagster again.

    Raises:
        InputError: there is no such executor.
    """
    executors = {"in_process": dg.in_process_executor, "multiprocess": dg.multiprocess_executor}
    name = os.environ.get(EXECUTOR_VARIABLE, "in_process")
    if name not in executors:
        raise InputError(f"{EXECUTOR_VARIABLE}: unknown executor {name!r}; allowed: {', '.join(executors)}")
    return executors[name]


def load_defs() -> dg.Definitions:
    """Return the definitions of the shipped configuration and `$TOKENUQ_CONFIG`.

    Raises:
        InputError: the configuration is wrong; the message says in which file and how to fix it.
    """
    try:
        return build_defs(load_config(*config_folders(os.environ)), executor=chosen_executor())
    except InputError as error:
        # Raised again for a short traceback: `dagster dev` shows all of it, with the message at the end.
        raise InputError(str(error)) from None


defs = load_defs()
