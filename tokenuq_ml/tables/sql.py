"""SQL over the store: a DuckDB connection with a view per table, behind walls.

A view reads only the files of complete assets. Filters on `study` and `ablation` skip files, filters on other columns
skip row groups. The walls, each of which holds without the others:

1. `select` walks DuckDB's syntax tree and allows it by kind at every depth (`syntax_tree.py`).
2. The connection reads the store through a file system that cannot write (`read_only_files.py`) and opens no other
   file, loads no extension, has no network; its configuration is locked.
3. `tokenuq query` runs it in a process that can write to its spill folder only and has a limit of memory and time
   (`tokenuq_pipeline/commands/query_process.py`).

A file is compared with its manifest before the first of its bytes is served (`integrity.py`).
"""

import atexit
import contextlib
import functools
import uuid
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.fetching import fetch_tables, not_fetched
from tokenuq_ml.tables.integrity import damage_of_table
from tokenuq_ml.tables.partition_scope import ALL, Scope, in_scope
from tokenuq_ml.tables.partitions import complete_files, store_home
from tokenuq_ml.tables.read_only_files import ReadOnlyFiles
from tokenuq_ml.tables.schemas import JOINED, JOINED_READS, TABLES
from tokenuq_ml.tables.spill import SpillFolder
from tokenuq_ml.tables.syntax_tree import Catalog, require_allowed
from tokenuq_ml.tables.views import create_joined_view, create_view, describe_views

MEMORY = "700MiB"
"""Default memory limit of DuckDB. Leaves room for Python, Arrow and a result's batches within 1 GiB."""

_LONGEST = 2000
"""Characters of DuckDB's message that are passed on: it may quote a value or a query of any length."""
_WALLS = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    # Otherwise a query could read variables of the Python program that runs it.
    "python_enable_replacements": False,
    # It would keep the store's files in memory, as it keeps those of remote file systems.
    "enable_external_file_cache": False,
}


@dataclass(frozen=True)
class _Store:
    """The file system by which a connection reads its store, and table -> why it cannot be opened."""

    reading: ReadOnlyFiles
    broken: dict[str, str]


_stores: weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, _Store] = weakref.WeakKeyDictionary()


def connect(
    home: str | Path | None = None,
    memory: str = MEMORY,
    spill: SpillFolder | None = None,
    damage_of: Callable[[Path, str], str | None] = damage_of_table,
    describe: bool = True,
    tables: Collection[str] | None = None,
    scope: Scope = ALL,
) -> duckdb.DuckDBPyConnection:
    """Return a connection with a view for every table of the store.

    A view holds all studies and ablations, with `study` and `ablation` as columns; it is empty if the store has no
    files of the table. `tokens` is token_losses and token_uncertainty joined one to one. Views show the assets that
    were complete when the connection was made: connect again to see newer ones. Descriptions of tables and columns are
    stored as comments.

    The connection can neither open other files than those of the views nor write to these, and its settings are
    locked. Add your own data with `connection.register(name, frame)`. Run SQL that you do not trust through `select`,
    or better through `tokenuq query`, which also limits its memory and time.

    Args:
        home: the store's folder, or its address `s3://bucket/prefix`; default: `$TOKENUQ_HOME`, or `store/`.
        memory: DuckDB's memory limit, beyond which it writes to a temporary folder.
        spill: that folder; default: one for the process, removed when it ends.
        damage_of: `(home, table) -> str | None`, asked before a table is first read; a sentence refuses the table.
        describe: store the comments. `select` can read none of them, and they take a third of the time of this call.
        tables: of a store in a bucket, the tables to download; others can be read only if they are here already.
            Default: all.
        scope: partitions of tables; the views have no others. Default: all.
    """
    home, spill = store_home(home), spill or process_folder()
    fetch_tables(home, TABLES if tables is None else tables, scope)
    files = {
        table: [path for path in paths if in_scope(path, table, scope)] for table, paths in complete_files(home).items()
    }
    absent = not_fetched(home, files)
    reading = ReadOnlyFiles(home, files, damage_of)
    # Created by this process, so that no other user can read it; "" for none. DuckDB removes it with the connection.
    folder = str(spill.path / uuid.uuid4().hex) if spill.path else ""
    config = {"temp_directory": folder, "max_temp_directory_size": f"{spill.limit()}B"}
    connection = duckdb.connect(config={**_WALLS, "memory_limit": memory, **config})
    connection.register_filesystem(reading)
    # `tokens` names a file once per piece; its footer shall be read only once.
    connection.execute("SET parquet_metadata_cache = true")
    views = {
        table: create_view(connection, table, files[table], reading.address, absent.get(table)) for table in TABLES
    }
    create_joined_view(connection, files, reading.address)
    if describe:
        describe_views(connection)
    connection.execute("SET allowed_paths = ?", [[reading.address(path) for paths in files.values() for path in paths]])
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    reading.verify = True
    _stores[connection] = _Store(reading, {table: message for table, message in views.items() if message})
    return connection


def select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """Return the result of a single SELECT, as a relation that computes its rows while they are read.

    Raises:
        InputError: `sql` is not one SELECT of the store's tables, a table that it names is damaged, or DuckDB rejects
            it; the message is DuckDB's.
    """
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"query: character {error.start + 1} is not valid UTF-8") from None
    with query_errors():
        statements = connection.extract_statements(sql)
        if len(statements) != 1:
            raise InputError(f"query: give exactly one SELECT; this has {len(statements) or 'no'} statements")
        names = require_allowed(Catalog(connection), sql)
        _require_undamaged(connection, names.tables)
        return connection.sql(sql)


def _require_undamaged(connection: duckdb.DuckDBPyConnection, names: set[str]) -> None:
    """Raise if a file of a table that the query names is not as it was published: missing rows are wrong rows."""
    store = _stores.get(connection)
    if store is None:
        return
    tables = {table for table in TABLES if table in names} | (set(JOINED_READS) if JOINED in names else set())
    for table in sorted(tables):
        if damage := store.reading.damage(table):
            raise InputError(f"query: table {table} is damaged: {damage}")
        if table in store.broken:
            raise InputError(f"query: {store.broken[table]}")


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
    """Return one row per column of every view: `table`, `column`, `type`, `meaning`, and the `rows` of the table.

    Rows are counted from the files' footers, without reading the files; null for a table that cannot be opened.
    """
    store = _stores.get(connection)
    with store.reading.unverified() if store else contextlib.nullcontext():
        counts = {name: _count(connection, name) for name in descriptions(connection)}
    found = connection.execute(
        "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE NOT internal "
        "ORDER BY table_oid, column_index"
    ).fetchall()
    rows = [(table, column, dtype, meaning, counts[table]) for table, column, dtype, meaning in found]
    names = ("table", "column", "type", "meaning", "rows")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])


def _count(connection: duckdb.DuckDBPyConnection, view: str) -> int | None:
    try:
        rows: list[tuple[int]] = connection.execute(f"SELECT count(*) FROM {view}").fetchall()
    except duckdb.Error:
        return None
    return rows[0][0]


def _plain(error: BaseException) -> str:
    """Return the message; of an error in our file system, which DuckDB passes on as a traceback, its last line."""
    text = str(error).strip()
    if text.startswith("Traceback"):
        text = text.splitlines()[-1].partition("Error: ")[2]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


@functools.cache
def process_folder() -> SpillFolder:
    """Return the process's own folder for data that exceeds the memory limit; it is deleted when the process ends."""
    folder = SpillFolder.create()
    atexit.register(folder.remove)
    return folder
