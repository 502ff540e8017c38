"""SQL over the store: a DuckDB connection with a view for every table, behind a wall.

A view reads the files of whole assets and nothing else; filters on `study` and `ablation`
skip files, filters on columns skip row groups. The wall: of all files DuckDB may open those
alone, it loads no extension, reaches no network, and its configuration is locked; `select`
lets a single SELECT through. This file does not know what is done with a result
(`tokenuq_pipeline/result_formats.py`), nor what the numbers mean.
"""

import atexit
import functools
import shutil
import tempfile
import uuid
from pathlib import Path

import duckdb
import pyarrow as pa

from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.joined_view import joined_sql, quoted
from tokenuq_ml.tables.partitions import store_home, whole_files
from tokenuq_ml.tables.schemas import JOINED, JOINED_FROM, JOINED_ON, TABLES

MEMORY = "700MiB"
"""Leaves room for Python, Arrow and a result's batches within 1 GiB; what does not fit is spilled to disk."""

_WALL = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    # Else a query could name variables of the Python program around it.
    "python_enable_replacements": False,
}


def connect(home: str | Path | None = None, memory: str = MEMORY) -> duckdb.DuckDBPyConnection:
    """A connection with a view for every table of the store in `home` (by default `$TOKENUQ_HOME`, or `store/`).

    Views hold every study and ablation, as columns; tables of which nothing has been made are empty views. `tokens`
    is token_losses and token_uncertainty joined one to one. The views are what was whole when the connection was
    made: connect again to see what has been made since. Meanings of tables and columns are their comments.

    The connection opens no file but those of the views, and its settings are locked; data of one's own comes in by
    `connection.register(name, frame)`. It takes statements of every kind, a COPY over a view's own file among them: SQL
    of others goes through `select`. `memory` is DuckDB's limit, above which it writes to a temporary folder.

    Raises:
        InputError: a file of the store is broken, or lies outside it.
    """
    # DuckDB would make the folder only when it is needed; nobody else may look into it.
    spill = Path(_spill_folder(), uuid.uuid4().hex)
    connection = duckdb.connect(config={**_WALL, "memory_limit": memory, "temp_directory": str(spill)})
    # `tokens` names a file once a piece; its footer is to be read once.
    connection.execute("SET parquet_metadata_cache = true")
    files = whole_files(store_home(home))
    for table in TABLES:
        try:
            _create_view(connection, table, files[table])
        except duckdb.Error as error:
            raise InputError(f"table {table}: {_plain(error).splitlines()[0]}; make its asset again") from error
    _create_joined_view(connection, files)
    connection.execute("SET allowed_paths = ?", [[str(path) for paths in files.values() for path in paths]])
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """The result of a single SELECT, as a relation whose rows are computed as they are read.

    Raises:
        InputError: `sql` is not one SELECT, or DuckDB refuses it; with DuckDB's message.
    """
    with explained():
        statements = connection.extract_statements(sql)
        if len(statements) != 1:
            raise InputError(f"query: give one SELECT at a time; there are {len(statements) or 'no'} statements")
        if statements[0].type != duckdb.StatementType.SELECT:
            kind = str(statements[0].type).rpartition(".")[2]
            raise InputError(f"query: only SELECT is allowed, since a query changes nothing; this is {kind}")
        return connection.sql(sql)


class explained:  # noqa: N801 - used as a function
    """Around whatever runs a query: DuckDB's errors become one InputError, its interruption a KeyboardInterrupt."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, _) -> None:
        if error is None or isinstance(error, InputError):
            return
        message = _plain(error)
        if "interrupted" in message.lower():
            raise KeyboardInterrupt from error
        if isinstance(error, duckdb.PermissionException) or "Permission Error" in message:
            raise InputError(
                f"query: {message}\nA query reads the tables of the store, and no other file or address."
            ) from error
        # An error on the way comes through Arrow's reader, as an OSError that no operating system has numbered.
        on_the_way = isinstance(error, OSError) and error.errno is None
        if on_the_way or isinstance(error, duckdb.Error | pa.ArrowException):
            raise InputError(f"query: {message}") from error


def descriptions(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """What each view holds, in a sentence."""
    views = connection.execute(
        "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal ORDER BY view_oid"
    ).fetchall()
    return dict(views)


def columns(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """One row a column of every view: `table`, `column`, `type`, `meaning`, and `rows`, those of the table."""
    counts = {
        name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in descriptions(connection)
    }
    found = connection.execute(
        "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE NOT internal "
        "ORDER BY table_oid, column_index"
    ).fetchall()
    rows = [(table, column, dtype, meaning, counts[table]) for table, column, dtype, meaning in found]
    names = ("table", "column", "type", "meaning", "rows")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])


def _create_view(connection: duckdb.DuckDBPyConnection, table: str, files: list[Path]) -> None:
    definition = TABLES[table]
    types = dict.fromkeys(definition.partitions, "VARCHAR")
    types |= {name: _sql_type(dtype) for name, (dtype, _) in definition.columns.items()}
    source, there = "(SELECT 1) WHERE false", set()
    if files:
        paths = ", ".join(quoted(str(path)) for path in files)
        hive = ", ".join(f"{name}: VARCHAR" for name in definition.partitions)
        source = (
            f"read_parquet([{paths}], hive_partitioning = true, hive_types = {{{hive}}}, hive_types_autocast = false, "
            "union_by_name = true)"
        )
        # A file of an older version may lack a column.
        there = {name for name, *_ in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    values = [f'"{name}"' if name in there else f'NULL::{dtype} AS "{name}"' for name, dtype in types.items()]
    connection.execute(f"CREATE VIEW {table} AS SELECT {', '.join(values)} FROM {source}")
    _comment(connection, table, definition.description, _meanings(table))


def _create_joined_view(connection: duckdb.DuckDBPyConnection, files: dict[str, list[Path]]) -> None:
    one, other = JOINED_FROM
    connection.execute(f"CREATE VIEW {JOINED} AS {joined_sql(files)}")
    description = f"{one} and {other}, joined one to one on {', '.join(JOINED_ON)}."
    _comment(connection, JOINED, description, _meanings(one) | _meanings(other))


def _comment(connection: duckdb.DuckDBPyConnection, view: str, description: str, meanings: dict[str, str]) -> None:
    comments = [f"COMMENT ON VIEW {view} IS {quoted(description)}"]
    comments += [f'COMMENT ON COLUMN {view}."{name}" IS {quoted(meaning)}' for name, meaning in meanings.items()]
    connection.execute(";".join(comments))


def _meanings(table: str) -> dict[str, str]:
    definition = TABLES[table]
    partitions = {name: f"name of the {name}; a filter on it skips files" for name in definition.partitions}
    return partitions | {name: meaning for name, (_, meaning) in definition.columns.items()}


def _sql_type(dtype: pa.DataType) -> str:
    """DuckDB's name of an Arrow type, of a dictionary that of its values. (Asking DuckDB itself imports pandas.)"""
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


def _plain(error: BaseException) -> str:
    return str(error).strip()


@functools.cache
def _spill_folder() -> str:
    """The process's own folder for what does not fit into memory, gone at its end."""
    folder = tempfile.mkdtemp(prefix="tokenuq-query-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
