"""Which tables of a store in a bucket are in its mirror, where DuckDB reads them; downloads those that are asked for.

Views are defined by the footers of their files, so a table's files are fetched before its view is made: all of them, or
those that a query is known to need (`partition_scope.py`). polars' `scan` fetches the partitions that it is asked for.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from tokenuq_ml.object_store.registry import bucket_mirror, mirror_of
from tokenuq_ml.tables.integrity import REPAIR
from tokenuq_ml.tables.partition_scope import ALL, Scope, in_scope
from tokenuq_ml.tables.partitions import complete_files, partition_of, published, published_files
from tokenuq_ml.tables.schemas import JOINED, JOINED_READS, TABLES


def fetch_tables(home: Path, tables: Collection[str], scope: Scope = ALL) -> None:
    """Download the files of tables that the mirror does not have; does nothing for a store in a folder.

    Args:
        home: the store.
        tables: whose files.
        scope: the partitions that are needed.

    Raises:
        StoreAway: the service does not answer.
    """
    mirror = bucket_mirror(home)
    if mirror is None:
        return
    files, records = complete_files(home), published_files(home)
    wanted = [path for table in tables for path in files[table] if in_scope(path, table, scope)]
    paths = [path.relative_to(home).as_posix() for path in wanted]
    # What is missing or damaged is left for the look at the table, which names it.
    mirror.fetch_all(records[path] for path in paths if path in records)


def fetch_partition(home: Path, table: str, **partition: str) -> None:
    """Download one partition of a table, for readers that look for its folder.

    Raises:
        StoreAway: the service does not answer.
    """
    mirror = bucket_mirror(home)
    if mirror is not None:
        records = published_files(home)
        files = (file for file in complete_files(home)[table] if partition_of(file, table) == partition)
        mirror.fetch_all(records[file.relative_to(home).as_posix()] for file in files)


def not_fetched(home: Path, files: Mapping[str, list[Path]]) -> dict[str, str]:
    """Return table -> why it cannot be opened here, for the tables of which the mirror lacks a file.

    Args:
        home: the store.
        files: table -> its files, as `complete_files` returns them.
    """
    mirror = mirror_of(home)
    if mirror is None:
        return {}
    records, absent = published_files(home), {}
    for table, paths in files.items():
        for path in paths:
            record = records.get(path.relative_to(home).as_posix())
            if record is None or not mirror.is_local(record):
                absent[table] = f"table {table}: {path} was not downloaded from the bucket; {REPAIR} if it is damaged"
    return absent


def tables_named(sql: str) -> set[str]:
    """Return the tables whose names are words of a query: all that it reads, and perhaps more."""
    words = {word.lower() for word in re.findall(r"\w+", sql)}
    return {table for table in TABLES if table in words} | (set(JOINED_READS) if JOINED in words else set())


def incomplete_assets(home: Path) -> list[str]:
    """Return the assets of a store in a bucket of which an object is missing."""
    mirror = bucket_mirror(home)
    if mirror is None:
        return []
    return [asset for asset, files in published(home).files.items() if mirror.missing(files)]
