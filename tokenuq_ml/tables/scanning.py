"""Open the tables of a store: lazily with polars, or as SQL views with DuckDB."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from tokenuq_ml.tables.partitions import partition_of, store_home, whole_files
from tokenuq_ml.tables.schemas import JOINED, JOINED_FROM, JOINED_ON, TABLES

if TYPE_CHECKING:
    import duckdb


def scan(table: str, home: str | Path | None = None, **partitions: str | Sequence[str]) -> pl.LazyFrame:
    """A table of the store as a LazyFrame, partition columns first; filters are pushed down to files and row groups.

    `scan("selections", study="quickstart", ablation=["mle", "paper_top25"])` names partitions, which saves looking at
    the files of others; a filter on `study` or `ablation` skips them as well. `tokens` is token_losses and
    token_uncertainty joined one to one. `home` is by default `$TOKENUQ_HOME`, or `store/`. What is being written is
    not seen; a frame made before a publication shows the files that were there then.

    Raises:
        KeyError: no such table.
        TypeError: the table is not partitioned by one of the names.
        FileNotFoundError: nothing of it has been made yet.
    """
    if table == JOINED:
        losses, uncertainty = (scan(part, home, **partitions) for part in JOINED_FROM)
        return losses.join(uncertainty, on=JOINED_ON)
    definition = TABLES[table]
    if unknown := set(partitions) - set(definition.partitions):
        raise TypeError(f"{table} is partitioned by {', '.join(definition.partitions)}, not by {', '.join(unknown)}")
    wanted = {name: {value} if isinstance(value, str) else set(value) for name, value in partitions.items()}
    folder = store_home(home)
    made = whole_files(folder)[table]
    files = [file for file in made if _is_in(partition_of(file, table), wanted)]
    if not files:
        raise FileNotFoundError(f"{folder / table}: {_what_is_there(table, made, wanted)}")
    # The schema spares opening every file first, and an older file that lacks a column gives nulls.
    return pl.scan_parquet(
        files,
        glob=False,
        schema=pl.Schema(pl.from_arrow(definition.schema.empty_table()).schema),
        missing_columns="insert",
        extra_columns="ignore",
        hive_partitioning=True,
        hive_schema=dict.fromkeys(definition.partitions, pl.String),
    ).select(*definition.partitions, *definition.columns)


def connect(home: str | Path | None = None, **options) -> "duckdb.DuckDBPyConnection":
    """A DuckDB connection with every table as a view: `sql.connect`, imported when it is asked for."""
    from tokenuq_ml.tables import sql

    return sql.connect(home, **options)


def _what_is_there(table: str, made: list[Path], wanted: dict[str, set[str]]) -> str:
    """Why no partition of `made` is among the wanted, and which there are."""
    for name, values in wanted.items():
        there = sorted({partition_of(file, table)[name] for file in made})
        if there and not values & set(there):
            return f"nothing of {name} {', '.join(sorted(values))}; there are {', '.join(there)}"
    return f"nothing there; materialise the asset that makes {table}"


def _is_in(partition: dict[str, str], wanted: dict[str, set[str]]) -> bool:
    return all(partition[name] in values for name, values in wanted.items())
