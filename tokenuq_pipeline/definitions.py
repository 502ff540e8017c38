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
from tokenuq_pipeline.assets.measure import measure_assets
from tokenuq_pipeline.assets.models import model_assets
from tokenuq_pipeline.assets.stage import StageAsset, build_assets
from tokenuq_pipeline.assets.tokenized_dataset import tokenized_dataset
from tokenuq_pipeline.assets.uncertainty_analysis import uncertainty_analysis
from tokenuq_pipeline.checks import build_checks
from tokenuq_pipeline.home import config_folders, store_home
from tokenuq_pipeline.jobs import build_jobs
from tokenuq_pipeline.launcher import StageLauncher
from tokenuq_pipeline.logs import compact_logger
from tokenuq_pipeline.store import Store


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
    config: Config, home: Path | None = None, launcher: dg.ConfigurableResource | None = None
) -> dg.Definitions:
    """All assets, checks and jobs of `config`, with results in the store at `home`.

    `launcher` is where heavy stages run; by default a child process of this one.
    """
    return dg.Definitions(
        assets=[build_assets(assets, entrypoint, op) for entrypoint, op, assets in stage_groups(config)],
        asset_checks=build_checks(config),
        jobs=build_jobs(config),
        resources={"store": Store(home or store_home()), "launcher": launcher or StageLauncher()},
        # The heavy work is in children anyway; further processes would only import Dagster again.
        executor=dg.in_process_executor,
        loggers={"console": compact_logger},
    )


def load_defs() -> dg.Definitions:
    """The definitions of the checkout's configuration and, beside it, of `$TOKENUQ_CONFIG`.

    Raises:
        InputError: what is wrong in which file, and the mend.
    """
    try:
        return build_defs(load_config(*config_folders(os.environ)))
    except InputError as error:
        # Anew, so that the message stands at the end of a short traceback, as `dagster dev` shows it.
        raise InputError(str(error)) from None


defs = load_defs()
