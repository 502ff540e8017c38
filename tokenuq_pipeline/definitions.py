"""The one Definitions object, built from the configuration: what Dagster loads.

Knows which factories make up the graph; no stage's details.
"""

import os
from pathlib import Path

import dagster as dg

from tokenuq_ml.config import Config, load_config
from tokenuq_pipeline.assets.ablation import ablation_assets
from tokenuq_pipeline.assets.datasets import dataset_assets
from tokenuq_pipeline.assets.models import model_assets
from tokenuq_pipeline.assets.report import report_assets
from tokenuq_pipeline.assets.study import study_assets
from tokenuq_pipeline.checks import all_checks
from tokenuq_pipeline.jobs import study_jobs
from tokenuq_pipeline.launcher import StageLauncher
from tokenuq_pipeline.resources import StoreResource

CHECKOUT = Path(__file__).resolve().parent.parent


def default_home() -> Path:
    """`$TOKENUQ_HOME`, or `store/` in the checkout."""
    return Path(os.environ.get("TOKENUQ_HOME") or CHECKOUT / "store").resolve()


def default_config() -> Config:
    """The checkout's `config/`, and the folder that `$TOKENUQ_CONFIG` names, if any."""
    more = os.environ.get("TOKENUQ_CONFIG")
    return load_config(CHECKOUT / "config", *([more] if more else []))


def build_defs(config: Config, home: Path | None = None, launcher: StageLauncher | None = None) -> dg.Definitions:
    """All assets, checks and jobs of a configuration, over the store at `home`."""
    assets = [model_assets(config, name) for name in config.models]
    assets += [dataset_assets(config, name) for name in config.datasets]
    for study in config.studies.values():
        assets += study_assets(config, study)
        assets += [ablation_assets(config, study, config.ablations[name]) for name in study.ablations]
        assets.append(report_assets(config, study))
    return dg.Definitions(
        assets=assets, asset_checks=all_checks(config), jobs=study_jobs(config),
        # The heavy work is in children anyway; the multiprocess executor would import everything anew a step.
        executor=dg.in_process_executor,
        resources={"launcher": launcher or StageLauncher(), "store": StoreResource(home=str(home or default_home()))})


defs = build_defs(default_config())
