"""The SQL of `tokens`, two tables joined one to one without a hash table of either.

The writer sorts both tables by the same keys and cuts them into row groups alike, so row n of
one belongs to row n of the other: piece by piece of some row groups they are laid side by side.
Memory does not grow with the tables, a filter on `study` or on one `example_id` leaves out the
other pieces, and processors share the pieces. Where the files of a study do not match, as
between rerunning one table and the other, that study is joined by its keys. Knows Parquet
footers and SQL; opens no connection.
"""

from pathlib import Path

import pyarrow.parquet as pq

from tokenuq_ml.partitions import partition_of
from tokenuq_ml.table_schemas import JOINED_FROM, JOINED_ON, TABLES

PIECE_GROUPS, MOST_PIECES = 4, 32
"""Row groups of a piece: what one example's query reads. A study has no more pieces than so many: each is planned."""


def joined_sql(files: dict[str, list[Path]]) -> str:
    """A SELECT over the files of both tables, with the columns of one and those of the other that are not keys."""
    one, other = JOINED_FROM
    by_study = {table: _by_study(table, files[table]) for table in JOINED_FROM}
    parts = []
    for study in sorted(by_study[one].keys() & by_study[other].keys()):
        pairs = by_study[one][study], by_study[other][study]
        pieces = _pieces(*pairs) if all(len(paths) == 1 for paths in pairs) else None
        if pieces is None:
            parts.append(_by_keys(f"WHERE study = {quoted(study)}"))
        else:
            (left,), (right,) = pairs
            parts += [_side_by_side(study, left, right, *piece) for piece in pieces]
    return "\nUNION ALL\n".join(parts) or _by_keys("")


def quoted(text: str) -> str:
    """`text` as a literal of SQL."""
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def _by_study(table: str, files: list[Path]) -> dict[str, list[Path]]:
    studies: dict[str, list[Path]] = {}
    for file in files:
        studies.setdefault(partition_of(file, table)["study"], []).append(file)
    return studies


def _pieces(lefts: list[Path], rights: list[Path]) -> list[tuple[int, int, str, str]] | None:
    """First and last row of each piece, its first and last example; None where the two files do not match."""
    left, right = _groups(lefts[0], JOINED_FROM[0]), _groups(rights[0], JOINED_FROM[1])
    if left is None or left != right:
        return None
    step = max(PIECE_GROUPS, -(-len(left) // MOST_PIECES))
    pieces, first = [], 0
    for start in range(0, len(left), step):
        groups = left[start : start + step]
        rows = sum(count for count, _, _ in groups)
        pieces.append((first, first + rows - 1, groups[0][1], groups[-1][2]))
        first += rows
    return pieces


def _groups(file: Path, table: str) -> list[tuple[int, str, str]] | None:
    """Rows, first and last example of each row group; None where a column or the statistics are missing."""
    footer = pq.read_metadata(file)
    names = footer.schema.to_arrow_schema().names
    if not set(TABLES[table].columns) <= set(names):
        return None
    column, groups = names.index("example_id"), []
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        statistics = group.column(column).statistics
        if statistics is None or not statistics.has_min_max:
            return None
        groups.append((group.num_rows, statistics.min, statistics.max))
    return groups


def _side_by_side(study: str, left: Path, right: Path, first: int, last: int, low: str, high: str) -> str:
    sources = [
        f"(SELECT * FROM read_parquet({quoted(str(file))}, hive_partitioning = false, file_row_number = true) "
        f"WHERE file_row_number BETWEEN {first} AND {last})"
        for file in (left, right)
    ]
    own = [f'l."{name}"' for name in TABLES[JOINED_FROM[0]].columns]
    own += [f'r."{name}"' for name in TABLES[JOINED_FROM[1]].columns if name not in JOINED_ON]
    # That keys are equal is known, and asked all the same: no row is ever laid beside another's. The range lets the
    # optimiser drop the piece where a query asks for an example that is not in it.
    return (
        f"SELECT {quoted(study)} AS study, {', '.join(own)} FROM {sources[0]} AS l POSITIONAL JOIN {sources[1]} AS r "
        f"WHERE l.example_id = r.example_id AND l.position = r.position "
        f"AND l.example_id BETWEEN {quoted(low)} AND {quoted(high)}"
    )


def _by_keys(where: str) -> str:
    one, other = (f"(SELECT * FROM {table} {where})" for table in JOINED_FROM)
    return f"SELECT * FROM {one} JOIN {other} USING ({', '.join(JOINED_ON)})"
