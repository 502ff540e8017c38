"""SQL over the store: a sandboxed DuckDB connection with a view per table.

A view reads only the files of complete assets. Filters on `study` and `ablation` skip files, filters on other columns
skip row groups. The sandbox: DuckDB can open no other files, loads no extensions, has no network access, and its
configuration is locked. `select` accepts a single SELECT only.
"""

import atexit
import contextlib
import functools
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.joined_view import joined_sql, quoted
from tokenuq_ml.tables.partitions import complete_files, store_home
from tokenuq_ml.tables.schemas import JOINED, JOINED_FROM, JOINED_ON, TABLES

MEMORY = "700MiB"
"""Default memory limit of DuckDB. Leaves room for Python, Arrow and a result's batches within 1 GiB."""

_SANDBOX = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    # Otherwise a query could read variables of the Python program that runs it.
    "python_enable_replacements": False,
}


def connect(home: str | Path | None = None, memory: str = MEMORY) -> duckdb.DuckDBPyConnection:
    """Return a connection with a view for every table of the store.

    A view holds all studies and ablations, with `study` and `ablation` as columns; it is empty if the store has no
    files of the table. `tokens` is token_losses and token_uncertainty joined one to one. Views show the assets that
    were complete when the connection was made: connect again to see newer ones. Descriptions of tables and columns are
    stored as comments.

    The connection opens no files other than those of the views, and its settings are locked. Add your own data with
    `connection.register(name, frame)`. It accepts every kind of statement, also a COPY over the file of a view: run
    SQL that you do not trust through `select`.

    Args:
        home: the store's folder; default: `$TOKENUQ_HOME`, or `store/`.
        memory: DuckDB's memory limit, beyond which it writes to a temporary folder.

    Raises:
        InputError: a file of the store is broken, or lies outside the store.
    """
    # Created by this process, so that no other user can read it: DuckDB creates it only when needed.
    spill = Path(_spill_folder(), uuid.uuid4().hex)
    connection = duckdb.connect(config={**_SANDBOX, "memory_limit": memory, "temp_directory": str(spill)})
    # `tokens` names a file once per piece; its footer shall be read only once.
    connection.execute("SET parquet_metadata_cache = true")
    files = complete_files(store_home(home))
    for table in TABLES:
        try:
            _create_view(connection, table, files[table])
        except duckdb.Error as error:
            raise InputError(f"table {table}: {_plain(error).splitlines()[0]}; materialise its asset again") from error
    _create_joined_view(connection, files)
    connection.execute("SET allowed_paths = ?", [[str(path) for paths in files.values() for path in paths]])
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """Return the result of a single SELECT, as a relation that computes its rows while they are read.

    Raises:
        InputError: `sql` is not one SELECT, or DuckDB rejects it; the message is DuckDB's.
    """
    with query_errors():
        statements = connection.extract_statements(sql)
        if len(statements) != 1:
            raise InputError(f"query: give exactly one SELECT; this has {len(statements) or 'no'} statements")
        if statements[0].type != duckdb.StatementType.SELECT:
            kind = str(statements[0].type).rpartition(".")[2]
            raise InputError(
                f"query: only SELECT is allowed, because a query must not change the store; this is {kind}"
            )
        return connection.sql(sql)


@contextlib.contextmanager
def query_errors() -> Iterator[None]:
    """Turn errors of DuckDB in the block into one InputError, and its interruption into a KeyboardInterrupt."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        message = _plain(error)
        if "interrupted" in message.lower():
            raise KeyboardInterrupt from error
        if isinstance(error, duckdb.PermissionException) or "Permission Error" in message:
            raise InputError(
                f"query: {message}\nA query can read the tables of the store, and no other file or address."
            ) from error
        # An error while rows are read arrives through Arrow's reader, as an OSError without a number.
        while_reading = isinstance(error, OSError) and error.errno is None
        if while_reading or isinstance(error, duckdb.Error | pa.ArrowException):
            raise InputError(f"query: {message}") from error
        raise


def descriptions(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Return view -> the sentence that describes it."""
    views = connection.execute(
        "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal ORDER BY view_oid"
    ).fetchall()
    return dict(views)


def columns(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """Return one row per column of every view: `table`, `column`, `type`, `meaning`, and the `rows` of the table."""
    counts = {
        name: connection.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in descriptions(connection)
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
    source, stored = "(SELECT 1) WHERE false", set[str]()
    if files:
        paths = ", ".join(quoted(str(path)) for path in files)
        hive = ", ".join(f"{name}: VARCHAR" for name in definition.partitions)
        source = (
            f"read_parquet([{paths}], hive_partitioning = true, hive_types = {{{hive}}}, hive_types_autocast = false, "
            "union_by_name = true)"
        )
        # A file of an older version may lack a column.
        stored = {name for name, *_ in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    values = [f'"{name}"' if name in stored else f'NULL::{dtype} AS "{name}"' for name, dtype in types.items()]
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


def _plain(error: BaseException) -> str:
    return str(error).strip()


@functools.cache
def _spill_folder() -> str:
    """Return the process's own folder for data that exceeds the memory limit; it is deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix="tokenuq-query-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
