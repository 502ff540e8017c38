"""Parquet tables of a store: schemas, writers, readers and SQL.

`scan` returns a table as a polars LazyFrame, `connect` a DuckDB connection with a view per table. Names are imported
on first use, so that reading a schema does not load polars or DuckDB.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenuq_ml.tables.parquet import TableWriter, content_of, read_table, stream_table, write_table
    from tokenuq_ml.tables.scanning import connect, scan
    from tokenuq_ml.tables.schemas import TABLES, Table, table_dir

_MODULES = {
    "TABLES": "schemas",
    "Table": "schemas",
    "TableWriter": "parquet",
    "connect": "scanning",
    "content_of": "parquet",
    "read_table": "parquet",
    "scan": "scanning",
    "stream_table": "parquet",
    "table_dir": "schemas",
    "write_table": "parquet",
}
__all__ = [
    "TABLES",
    "Table",
    "TableWriter",
    "connect",
    "content_of",
    "read_table",
    "scan",
    "stream_table",
    "table_dir",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
