"""The one Definitions object, built from the configuration; `build_defs` is the seam for tests."""

import os
from pathlib import Path

import dagster as dg

from tokenuq_ml.config import Config, load_config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.ablation import ablation_assets
from tokenuq_pipeline.assets.ablation_report import ablation_report
from tokenuq_pipeline.assets.baseline_teacher import baseline_teacher
from tokenuq_pipeline.assets.datasets import dataset_assets
from tokenuq_pipeline.assets.files import file_assets
from tokenuq_pipeline.assets.measure import measure_assets
from tokenuq_pipeline.assets.models import model_assets
from tokenuq_pipeline.assets.stage import StageAsset, build_assets
from tokenuq_pipeline.assets.tokenized_dataset import tokenized_dataset
from tokenuq_pipeline.assets.uncertainty_analysis import uncertainty_analysis
from tokenuq_pipeline.automation import build_automation
from tokenuq_pipeline.checks import build_checks
from tokenuq_pipeline.home import config_folders, store_home
from tokenuq_pipeline.jobs import build_jobs
from tokenuq_pipeline.launcher import StageLauncher
from tokenuq_pipeline.logs import compact_logger
from tokenuq_pipeline.reruns import Reruns, starts_running
from tokenuq_pipeline.schedules import build_schedules
from tokenuq_pipeline.sensors import build_sensors
from tokenuq_pipeline.store import Store

EXECUTOR_VARIABLE = "TOKENUQ_EXECUTOR"


def stage_groups(config: Config) -> list[tuple[str, str, list[StageAsset]]]:
    """(entry point, op name, assets) of every child process that there can be."""
    groups = [("convert_model", "__".join(asset.path), [asset]) for asset in model_assets(config)]
    groups += [("load_dataset", "__".join(asset.path), [asset]) for asset in dataset_assets(config)]
    for study in config.studies.values():
        name = study.name
        groups += [
            ("tokenize_dataset", f"{name}__tokenized_dataset", [tokenized_dataset(config, study)]),
            ("train_teacher", f"{name}__baseline_teacher", [baseline_teacher(config, study)]),
            ("measure", f"{name}__measure", measure_assets(config, study)),
            ("analyse", f"{name}__uncertainty_analysis", [uncertainty_analysis(config, study)]),
        ]
        groups += [
            ("train_student", f"{name}__{arm}__student", ablation_assets(config, study, config.ablations[arm]))
            for arm in study.ablations
        ]
        groups.append(("report", f"{name}__ablation_report", [ablation_report(config, study)]))
    return groups


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
