"""Open the tables of a store: lazily with polars, or as SQL views with DuckDB."""

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.integrity import damage_of_table
from tokenuq_ml.tables.partitions import complete_files, partition_of, store_home
from tokenuq_ml.tables.schemas import JOINED, JOINED_FROM, JOINED_LATER, JOINED_ON, TABLES

if TYPE_CHECKING:
    import duckdb


def scan(table: str, home: str | Path | None = None, **partitions: str | Sequence[str]) -> pl.LazyFrame:
    """Return a table of the store as a LazyFrame, with partition columns first.

    Filters are pushed down to files and row groups. Only complete assets are read, and a frame keeps the files that
    were published when it was made. Each file is compared with its recorded hash once, until it is written to again
    (`integrity.py`).

    Args:
        table: a name of `TABLES`, or `tokens`: token_losses and token_uncertainty joined one to one, with
            the columns of `JOINED_LATER`.
        home: the store's folder, or its address `s3://bucket/prefix`; default: `$TOKENUQ_HOME`, or `store/`.
        **partitions: values of partition columns, as in `scan("selections", ablation=["mle", "paper_top25"])`. A
            filter on such a column skips files as well; naming values here also avoids listing the others.

    Raises:
        KeyError: there is no such table.
        TypeError: the table is not partitioned by one of the names.
        FileNotFoundError: the store has no such partition.
        InputError: a file of these partitions is damaged.
    """
    if table == JOINED:
        losses, uncertainty = (scan(part, home, **partitions) for part in JOINED_FROM)
        tokens = losses.join(uncertainty, on=JOINED_ON)
        for later in JOINED_LATER:
            tokens = tokens.join(_later(later, home, **partitions), on=JOINED_ON, how="left")
        return tokens
    definition = TABLES[table]
    if unknown := set(partitions) - set(definition.partitions):
        raise TypeError(f"{table} is partitioned by {', '.join(definition.partitions)}, not by {', '.join(unknown)}")
    wanted = {name: {value} if isinstance(value, str) else set(value) for name, value in partitions.items()}
    folder = store_home(home)
    if damage := damage_of_table(folder, table, **wanted):
        raise InputError(f"table {table} is damaged: {damage}")
    published = complete_files(folder)[table]
    files = [file for file in published if _is_wanted(partition_of(file, table), wanted)]
    _require_undamaged(folder, table, wanted)
    if not files:
        raise FileNotFoundError(f"{folder / table}: {_why_missing(table, published, wanted)}")
    columns = pl.DataFrame(definition.schema.empty_table()).schema
    # With a schema, files are not opened before they are read, and an older file that lacks a column gives nulls.
    return pl.scan_parquet(
        files,
        glob=False,
        schema=columns,
        missing_columns="insert",
        extra_columns="ignore",
        hive_partitioning=True,
        hive_schema=dict.fromkeys(definition.partitions, pl.String),
    ).select(*definition.partitions, *definition.columns)


def _later(table: str, home: str | Path | None, **partitions: str | Sequence[str]) -> pl.LazyFrame:
    """Return the columns of a further table that the view `tokens` has; no rows if the studies have no such table."""
    columns = (*JOINED_ON, *JOINED_LATER[table])
    try:
        return scan(table, home, **partitions).select(columns)
    except FileNotFoundError:
        empty = pl.DataFrame(TABLES[table].schema.empty_table()).with_columns(study=pl.lit("", pl.String))
        return empty.lazy().select(columns)


def connect(
    home: str | Path | None = None, memory: str | None = None, tables: Collection[str] | None = None
) -> "duckdb.DuckDBPyConnection":
    """Return a DuckDB connection with every table of the store as a view; see `tables.sql.connect`.

    Args:
        home: the store's folder, or its address `s3://bucket/prefix`; default: `$TOKENUQ_HOME`, or `store/`.
        memory: DuckDB's memory limit, beyond which it writes to a temporary folder; default: `tables.sql.MEMORY`.
        tables: of a store in a bucket, the tables to download; default: all.
    """
    # Imported here: to scan needs no DuckDB.
    from tokenuq_ml.tables import sql

    return sql.connect(home, memory or sql.MEMORY, tables=tables)


def _require_undamaged(home: Path, table: str, wanted: dict[str, set[str]]) -> None:
    for values in itertools.product(*(sorted(values) for values in wanted.values())):
        if damage := damage_of_table(home, table, **dict(zip(wanted, values, strict=True))):
            raise InputError(f"table {table} is damaged: {damage}")


def _why_missing(table: str, published: list[Path], wanted: dict[str, set[str]]) -> str:
    """Return which partition is missing, and which exist."""
    for name, values in wanted.items():
        existing = sorted({partition_of(file, table)[name] for file in published})
        if existing and not values & set(existing):
            return f"no {name} {', '.join(sorted(values))}; the store has {', '.join(existing)}"
    return f"the store has no such partition; materialise the asset that writes {table}"


def _is_wanted(partition: dict[str, str], wanted: dict[str, set[str]]) -> bool:
    return all(partition[name] in values for name, values in wanted.items())
