"""Bring Dagster's records up to date with the store, before the UI shows them."""

import os
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from tokenuq_ml.config.load import load_config
from tokenuq_pipeline.assets.checks import table_checks
from tokenuq_pipeline.assets.shown_studies import held, shown_config
from tokenuq_pipeline.automation.adoption import adopt, checks_by_asset, counted
from tokenuq_pipeline.automation.staleness import Records
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.runtime.bucket_store import open_store
from tokenuq_pipeline.runtime.data_files import observe
from tokenuq_pipeline.runtime.paths import config_folders


def adopt_shown(instance: dg.DagsterInstance, home: Path, say: Callable[[str], None]) -> None:
    """Report to Dagster what the store holds of the shown studies, such as for a new `DAGSTER_HOME`.

    Files are compared by size only, so that the UI need not wait: `tokenuq adopt` and every run read them, and every
    stage compares what it reads with its hashes.

    Args:
        instance: of the UI.
        home: the store.
        say: called with one sentence if anything was adopted.
    """
    store = open_store(home)
    if not any(held(store)):
        return
    config = shown_config(load_config(*config_folders(os.environ)), store)
    observe(config, instance, store)
    records = Records.of(build_defs(config, home).resolve_asset_graph(), config, instance, store)
    found = adopt(records, records.assets, checks_by_asset(table_checks(config)), verify=False)
    if found.adopted:
        say(f"{counted(len(found.adopted))} of the store adopted into Dagster's records")
