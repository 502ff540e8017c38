"""The views of a connection: one per table, the join of the token tables, and their descriptions as comments.

A table with a file that DuckDB cannot open gets a view that raises an error, so that other tables can be queried.
"""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa

from tokenuq_ml.tables.integrity import REPAIR
from tokenuq_ml.tables.joined_view import joined_sql, quoted
from tokenuq_ml.tables.schemas import JOINED, JOINED_FROM, JOINED_LATER, JOINED_ON, TABLES


def create_view(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    files: list[Path],
    address: Callable[[Path], str],
    refused: str | None = None,
) -> str | None:
    """Create the view of a table.

    Args:
        connection: where.
        table: a name of `TABLES`.
        files: the table's files.
        address: a file -> the name by which DuckDB reads it.
        refused: why the table must not be opened.

    Returns:
        Why DuckDB cannot open the files; the view raises it. None if it can.
    """
    definition = TABLES[table]
    types = dict.fromkeys(definition.partitions, "VARCHAR")
    types |= {field.name: _sql_type(field.type) for field in definition.schema}
    message = refused
    try:
        select = "" if message else _select_from_files(connection, table, types, [address(file) for file in files])
    except duckdb.Error as error:
        message = f"table {table}: {str(error).strip().splitlines()[0]}; {REPAIR}"
    if message:
        select = _select_an_error(types, message)
    connection.execute(f"CREATE VIEW {table} AS {select}")
    return message


def create_joined_view(
    connection: duckdb.DuckDBPyConnection, files: dict[str, list[Path]], address: Callable[[Path], str]
) -> None:
    """Create the view `tokens`; its arguments are those of `create_view`, with `files` of every table."""
    connection.execute(f"CREATE VIEW {JOINED} AS {joined_sql(files, address)}")


def describe_views(connection: duckdb.DuckDBPyConnection) -> None:
    """Store the descriptions of all views and their columns as comments, in one transaction."""
    one, other = JOINED_FROM
    joined = (
        f"{one} and {other}, joined one to one on {', '.join(JOINED_ON)}; with {' and '.join(JOINED_LATER)}, if any."
    )
    later = {name: TABLES[table].columns[name][1] for table, columns in JOINED_LATER.items() for name in columns}
    comments = [
        comment for table in TABLES for comment in _comments(table, TABLES[table].description, _meanings(table))
    ]
    comments += _comments(JOINED, joined, _meanings(one) | _meanings(other) | later)
    connection.execute(";".join(("BEGIN", *comments, "COMMIT")))


def _select_from_files(
    connection: duckdb.DuckDBPyConnection, table: str, types: dict[str, str], addresses: list[str]
) -> str:
    source, stored = "(SELECT 1) WHERE false", set[str]()
    if addresses:
        hive = ", ".join(f"{name}: VARCHAR" for name in TABLES[table].partitions)
        source = (
            f"read_parquet([{', '.join(map(quoted, addresses))}], hive_partitioning = true, hive_types = {{{hive}}}, "
            "hive_types_autocast = false, union_by_name = true)"
        )
        # A file of an older version may lack a column.
        stored = {name for name, *_ in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    values = [f'"{name}"' if name in stored else f'NULL::{dtype} AS "{name}"' for name, dtype in types.items()]
    return f"SELECT {', '.join(values)} FROM {source}"


def _select_an_error(types: dict[str, str], message: str) -> str:
    # In every column too: a filter on a column of nulls would drop the row before the error.
    error = f"error({quoted(message)})"
    values = [f'CAST(CAST({error} AS VARCHAR) AS {dtype}) AS "{name}"' for name, dtype in types.items()]
    return f"SELECT {', '.join(values)} FROM range(1) WHERE {error}"


def _comments(view: str, description: str, meanings: dict[str, str]) -> list[str]:
    comments = [f"COMMENT ON VIEW {view} IS {quoted(description)}"]
    return comments + [f'COMMENT ON COLUMN {view}."{name}" IS {quoted(meaning)}' for name, meaning in meanings.items()]


def _meanings(table: str) -> dict[str, str]:
    definition = TABLES[table]
    partitions = {name: f"name of the {name}; a filter on it skips files" for name in definition.partitions}
    return partitions | {name: meaning for name, (_, meaning) in definition.columns.items()}


def _sql_type(dtype: pa.DataType) -> str:
    """Return DuckDB's name of an Arrow type, for a dictionary that of its values. (To ask DuckDB imports pandas.)"""
    if pa.types.is_dictionary(dtype):
        return _sql_type(dtype.value_type)
    if pa.types.is_list(dtype):
        return f"{_sql_type(dtype.value_type)}[]"
    if pa.types.is_struct(dtype):
        fields = (f'"{field.name}" {_sql_type(field.type)}' for field in dtype)
        return f"STRUCT({', '.join(fields)})"
    return _SQL_TYPES[str(dtype)]


_SQL_TYPES = {
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
}
