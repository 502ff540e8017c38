"""The SQL of the view `tokens`: two tables joined one to one, without a hash table of either.

The writer sorts both tables by the same key and cuts both into the same row groups, so that row n of one belongs to
row n of the other. The tables are therefore joined by row number, in pieces of a few row groups each. Memory does not
grow with the tables, a filter on `study` or on one `example_id` skips the other pieces, and processors share the
pieces. If the files of a study do not match, as after only one table was rerun, that study is joined by key. If a file
is replaced after the view was made, the query fails.

Some studies have further tables, joined by key: `token_truth`, of a synthetic language, and `uncertainty_estimates`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tokenuq_ml.tables.partitions import partition_of
from tokenuq_ml.tables.schemas import JOINED_FROM, JOINED_LATER, JOINED_ON, TABLES

PIECE_GROUPS, MOST_PIECES = 4, 32
"""Row groups per piece, which a query for one example reads; and pieces per study, each of which costs planning."""
_TYPES = {"category": "VARCHAR", "float32": "FLOAT", "float64": "DOUBLE"}
"""Type of a column in `TABLES` -> DuckDB's."""


def joined_sql(files: dict[str, list[Path]], address: Callable[[Path], str]) -> str:
    """Return a SELECT over the files of both tables, with all columns of the first and the second's without keys.

    The columns of the tables that only some studies have follow; they are null in the others.

    Args:
        files: table -> its files.
        address: a file -> the name by which DuckDB reads it.
    """
    one, other = JOINED_FROM
    by_study = {table: _by_study(table, files[table]) for table in JOINED_FROM}
    later = {table: _by_study(table, files[table]).keys() for table in JOINED_LATER}
    parts = []
    for study in sorted(by_study[one].keys() & by_study[other].keys()):
        left, right = (_footer(by_study[table][study], table, address) for table in JOINED_FROM)
        if left is None or right is None or left.groups != right.groups:
            part = _join_by_key(f"WHERE study = {quoted(study)}")
        else:
            part = _join_in_pieces(study, left, right)
        for table, columns in JOINED_LATER.items():
            part = _with_table(part, table, columns, study if study in later[table] else None)
        parts.append(part)
    if parts:
        return "\nUNION ALL\n".join(parts)
    part = _join_by_key("")
    for table, columns in JOINED_LATER.items():
        part = _with_table(part, table, columns, None)
    return part


def _with_table(part: str, table: str, columns: tuple[str, ...], study: str | None) -> str:
    """Return a SELECT of the rows of `part` with columns of a further table; null without a study."""
    if study is None:
        nulls = (f'NULL::{_TYPES[TABLES[table].columns[name][0]]} AS "{name}"' for name in columns)
        return f"SELECT *, {', '.join(nulls)} FROM ({part})"
    selected = ", ".join((*JOINED_ON, *columns))
    further = f"SELECT {selected} FROM {table} WHERE study = {quoted(study)}"
    return f"SELECT * FROM ({part}) LEFT JOIN ({further}) USING ({', '.join(JOINED_ON)})"


def quoted(text: str) -> str:
    """Return `text` as an SQL literal."""
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def _by_study(table: str, files: list[Path]) -> dict[str, list[Path]]:
    studies: dict[str, list[Path]] = {}
    for file in files:
        studies.setdefault(partition_of(file, table)["study"], []).append(file)
    return studies


@dataclass(frozen=True)
class _Footer:
    """A table's only file by its address, its content hash, and rows, first and last example of each row group."""

    file: str
    content: str
    groups: list[tuple[int, str, str]]


def _footer(files: list[Path], table: str, address: Callable[[Path], str]) -> _Footer | None:
    """Return None if the files cannot be joined in pieces: several files, or one that `TableWriter` did not write."""
    if len(files) != 1:
        return None
    try:
        footer = pq.read_metadata(files[0])
    except (OSError, pa.ArrowException):
        # The table's own view raises the error.
        return None
    names = footer.schema.to_arrow_schema().names
    content = (footer.metadata or {}).get(b"tokenuq.content_hash")
    if content is None or not set(TABLES[table].columns) <= set(names):
        return None
    column, groups = names.index("example_id"), []
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        statistics = group.column(column).statistics
        if statistics is None or not statistics.has_min_max:
            return None
        groups.append((group.num_rows, statistics.min, statistics.max))
    return _Footer(address(files[0]), content.decode(), groups)


def _join_in_pieces(study: str, left: _Footer, right: _Footer) -> str:
    step = max(PIECE_GROUPS, -(-len(left.groups) // MOST_PIECES))
    pieces, first = [], 0
    for start in range(0, len(left.groups), step):
        groups = left.groups[start : start + step]
        last = first + sum(rows for rows, _, _ in groups) - 1
        pieces.append(_piece(study, left.file, right.file, first, last, groups[0][1], groups[-1][2]))
        first = last + 1
    if not pieces:
        return _join_by_key(f"WHERE study = {quoted(study)}")
    replaced = quoted(f"study {study}: a token table was replaced after this connection was made; connect again")
    contents = f"{quoted(left.content)}, {quoted(right.content)}"
    unchanged = (
        f"SELECT bool_and(CASE WHEN decode(value) IN ({contents}) THEN true ELSE error({replaced}) END) "
        f"FROM parquet_kv_metadata([{quoted(left.file)}, {quoted(right.file)}]) "
        "WHERE decode(key) = 'tokenuq.content_hash'"
    )
    union = "\nUNION ALL\n".join(pieces)
    return f"SELECT * FROM ({union}) WHERE ({unchanged})"


def _piece(study: str, left: str, right: str, first: int, last: int, low: str, high: str) -> str:
    sources = [
        f"(SELECT * FROM read_parquet({quoted(file)}, hive_partitioning = false, file_row_number = true) "
        f"WHERE file_row_number BETWEEN {first} AND {last})"
        for file in (left, right)
    ]
    own = [f'l."{name}"' for name in TABLES[JOINED_FROM[0]].columns]
    own += [f'r."{name}"' for name in TABLES[JOINED_FROM[1]].columns if name not in JOINED_ON]
    # Keys of joined rows are equal; checked nevertheless, so that no row is ever joined with another's. The range lets
    # the optimiser drop the piece if a query asks for an example that is not in it.
    return (
        f"SELECT {quoted(study)} AS study, {', '.join(own)} FROM {sources[0]} AS l POSITIONAL JOIN {sources[1]} AS r "
        f"WHERE l.example_id = r.example_id AND l.position = r.position "
        f"AND l.example_id BETWEEN {quoted(low)} AND {quoted(high)}"
    )


def _join_by_key(where: str) -> str:
    one, other = (f"(SELECT * FROM {table} {where})" for table in JOINED_FROM)
    return f"SELECT * FROM {one} JOIN {other} USING ({', '.join(JOINED_ON)})"
