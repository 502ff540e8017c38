"""What every asset check shares: reading a table of the store, and saying how a check ended."""

import dagster as dg
import polars as pl

from tokenuq_ml.tables.parquet import read_table
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import table_path

ENTROPY_SLACK = 1e-5
"""Nats that rounding may take an entropy below zero, or a part above the whole."""

Outcome = dg.AssetCheckResult


def read(store: Store, table: str, **partitions: str) -> pl.DataFrame:
    return read_table(store.path(table_path(table, **partitions)))


def outcome(passed: bool, description: str, warn: bool = False, **figures) -> Outcome:
    return dg.AssetCheckResult(
        passed=bool(passed),
        description=description,
        metadata={k: v for k, v in figures.items() if v is not None},
        severity=dg.AssetCheckSeverity.WARN if warn else dg.AssetCheckSeverity.ERROR,
    )
