"""What every asset check shares: reading a table of the store, and stating the outcome.

Checks import polars when they are evaluated: their names are enough to find out what is stale.
"""

from typing import TYPE_CHECKING, Any

import dagster as dg

from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import table_path

if TYPE_CHECKING:
    import polars as pl

ENTROPY_SLACK = 1e-5
"""Nats by which rounding may take an entropy below zero, or a part of it above the total."""

Outcome = dg.AssetCheckResult


def read(store: Store, table: str, **partitions: str) -> "pl.DataFrame":
    """Return one partition of a table.

    Raises:
        Failure: it is damaged.
    """
    from tokenuq_ml.tables.integrity import damage_of_table
    from tokenuq_ml.tables.parquet import read_table

    if damage := damage_of_table(store.home, table, **partitions):
        raise dg.Failure(damage, allow_retries=False)
    return read_table(store.path(table_path(table, **partitions)))


def outcome(passed: bool, description: str, warn: bool = False, **figures: Any) -> Outcome:
    """Return the result of a check.

    Args:
        passed: whether what the check states is true.
        description: one sentence with the figures that decided it.
        warn: a failure is a warning, not an error.
        **figures: metadata; None is left out.
    """
    return dg.AssetCheckResult(
        passed=bool(passed),
        description=description,
        metadata={name: value for name, value in figures.items() if value is not None},
        severity=dg.AssetCheckSeverity.WARN if warn else dg.AssetCheckSeverity.ERROR,
    )
