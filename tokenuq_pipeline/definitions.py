"""The one Definitions object, built from the configuration; `build_defs` is the seam for tests."""

import os
from pathlib import Path

import dagster as dg

from tokenuq_ml.config.load import Config, load_config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.checks import build_checks
from tokenuq_pipeline.assets.data_files import file_assets
from tokenuq_pipeline.assets.graph import stage_groups
from tokenuq_pipeline.assets.run_stage import build_assets
from tokenuq_pipeline.automation.condition_sensors import build_automation
from tokenuq_pipeline.automation.jobs import build_jobs
from tokenuq_pipeline.automation.reruns import Reruns, starts_running
from tokenuq_pipeline.automation.schedules import build_schedules
from tokenuq_pipeline.automation.sensors import build_sensors
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.logs import compact_logger
from tokenuq_pipeline.runtime.paths import config_folders, store_home
from tokenuq_pipeline.runtime.store import Store

EXECUTOR_VARIABLE = "TOKENUQ_EXECUTOR"


def build_defs(
    config: Config,
    home: Path | None = None,
    launcher: dg.ConfigurableResource | None = None,
    executor: dg.ExecutorDefinition = dg.in_process_executor,
) -> dg.Definitions:
    """All assets, checks, jobs, schedules and sensors of `config`, with results in the store at `home`.

    `launcher` is where heavy stages run; by default a child process of this one.

    Raises:
        InputError: an environment variable that schedules and sensors read holds nonsense.
    """
    store = Store(home or store_home())
    reruns, running, jobs = Reruns(config, store), starts_running(), build_jobs(config)
    stages = [build_assets(assets, entrypoint, op) for entrypoint, op, assets in stage_groups(config)]
    return dg.Definitions(
        assets=[*file_assets(config), *stages],
        asset_checks=build_checks(config),
        jobs=jobs,
        schedules=build_schedules(reruns, running),
        sensors=[
            *build_sensors(reruns, [job for job in jobs if job.name in reruns.studies], running),
            *build_automation(reruns.studies, running),
        ],
        resources={"store": store, "launcher": launcher or StageLauncher()},
        executor=executor,
        loggers={"console": compact_logger},
    )


def chosen_executor() -> dg.ExecutorDefinition:
    """How the steps of the UI's runs are run: `$TOKENUQ_EXECUTOR`.

    By default in the run's own process: the heavy work is in children anyway, and further processes would only import
    Dagster again.

    Raises:
        InputError: there is no such executor.
    """
    executors = {"in_process": dg.in_process_executor, "multiprocess": dg.multiprocess_executor}
    name = os.environ.get(EXECUTOR_VARIABLE, "in_process")
    if name not in executors:
        raise InputError(f"{EXECUTOR_VARIABLE}: unknown executor {name!r}; allowed: {', '.join(executors)}")
    return executors[name]


def load_defs() -> dg.Definitions:
    """The definitions of the checkout's configuration and, beside it, of `$TOKENUQ_CONFIG`.

    Raises:
        InputError: what is wrong in which file, and the mend.
    """
    try:
        return build_defs(load_config(*config_folders(os.environ)), executor=chosen_executor())
    except InputError as error:
        # Anew, so that the message stands at the end of a short traceback, as `dagster dev` shows it.
        raise InputError(str(error)) from None


defs = load_defs()
