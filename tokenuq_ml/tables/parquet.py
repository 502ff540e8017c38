"""Write and read the Parquet file of a table's partition, with a hash of its content."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenuq_ml.atomic_files import AtomicFile
from tokenuq_ml.content_hash import ContentHash
from tokenuq_ml.errors import NonFiniteError
from tokenuq_ml.tables.schemas import TABLES

ROW_GROUP_ROWS = 128 * 1024
ROW_GROUP_LIST_BYTES = 2**24
"""Size of a group's columns of lists, whose rows may have thousands of values; a group has fewer rows then."""
_READ_BYTES = 2**20


class TableWriter:
    """Writer of one partition, frame by frame, in bounded memory: `part-0.parquet` in `folder`.

    A context manager. When the block ends, the file appears complete (written to a temporary file, fsynced, renamed)
    and `digest` is its content hash; after an error no file appears. Columns are cast to the schema's order and types,
    and the rows of a frame are sorted by the table's key; frames must be appended in the order of that key.

    The layout was chosen for queries, measured on ten million rows (`benchmarks/queries.py`):

    - Rows sorted by example give row groups with narrow ranges of example_id (of step, for selections), so a query
      for one example reads one group.
    - Groups have 128k rows: small enough for that, and many enough to occupy all processors. With 32k rows, or with a
      million, an aggregate takes longer.
    - Text and integers get a dictionary: a filter on split or category then compares numbers. Positions and floating
      point numbers get none: few values repeat, and a dictionary that the writer gives up halfway makes the file half
      as large again. Lists get none either: they compress equally well without one.
    - Compression is Zstandard at its default level, which is fast.

    Args:
        table: a name of `TABLES`.
        folder: the partition's folder.
        spec_hash: hash of the asset's fields, stored in the file's metadata.
        code_version: code version of the asset, stored in the file's metadata.

    Raises:
        ValueError: a column is missing that is not optional, or is unknown, or cannot be cast; or a frame is out of
            order.
        NonFiniteError: a number is NaN or infinite.
    """

    def __init__(self, table: str, folder: str | Path, *, spec_hash: str, code_version: str):
        self.table, self.folder, self.digest = table, Path(folder), ""
        self.path = self.folder / "part-0.parquet"
        self._stamp = {"tokenuq.spec_hash": spec_hash, "tokenuq.code_version": code_version}
        self._definition, self._schema = TABLES[table], TABLES[table].schema
        self._hash = ContentHash(self._schema, self._definition.optional)
        self._pending: list[pa.Table] = []
        self._pending_lists = 0
        self._last: tuple[Any, ...] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = AtomicFile(self.path)
        self._parquet = pq.ParquetWriter(
            self._file.file,
            self._schema,
            compression="zstd",
            write_statistics=True,
            use_dictionary=[field.name for field in self._schema if _repeats(field)],
        )
        return self

    def append(self, frame: pl.DataFrame | pa.Table) -> None:
        """Add rows; their keys must come after those of the rows before."""
        data = frame.to_arrow() if isinstance(frame, pl.DataFrame) else frame
        for name in self._definition.optional:
            if name not in data.column_names:
                data = data.append_column(name, pa.nulls(data.num_rows, self._schema.field(name).type))
        names, keys = self._schema.names, self._definition.keys
        if set(data.column_names) != set(names):
            odd = sorted(set(data.column_names) ^ set(names))
            raise ValueError(f"table {self.table}: missing or unknown columns: {', '.join(odd)}")
        columns = [_cast(data.column(name), self._schema.field(name).type) for name in names]
        self._require_finite(data, columns)
        data = pa.table(columns, schema=self._schema).sort_by([(key, "ascending") for key in keys]).combine_chunks()
        if not data.num_rows:
            return
        first, last = (tuple(data.column(key)[row].as_py() for key in keys) for row in (0, data.num_rows - 1))
        if self._last is not None and first <= self._last:
            raise ValueError(f"table {self.table}: row {first} is out of order: it comes after {self._last}")
        self._last = last
        self._hash.update(data)
        self._pending.append(data)
        self._pending_lists += sum(column.nbytes for column in data.columns if pa.types.is_nested(column.type))
        if self._pending_lists >= ROW_GROUP_LIST_BYTES:
            self._flush(rest=True)
        elif sum(part.num_rows for part in self._pending) >= ROW_GROUP_ROWS:
            self._flush()

    def _require_finite(self, data: pa.Table, columns: list[pa.ChunkedArray]) -> None:
        """Raise if a number is NaN or infinite: it would spread into every mean. What has no value is null."""
        for name, column in zip(self._schema.names, columns, strict=True):
            if pa.types.is_floating(column.type) and pc.all(pc.is_finite(column)).as_py() is False:
                row = pc.index(pc.is_finite(column), False).as_py()
                at = ", ".join(f"{key} {data.column(key)[row].as_py()}" for key in self._definition.keys)
                raise NonFiniteError(f"table {self.table}: {name} is {column[row].as_py()} at {at}; nothing is written")

    def _flush(self, rest: bool = False) -> None:
        """Write the full row groups, and with `rest` the remaining rows as well."""
        if self._pending:
            rows = pa.concat_tables(self._pending)
            full = len(rows) if rest else len(rows) - len(rows) % ROW_GROUP_ROWS
            # One dictionary for the written rows only: otherwise it would grow from row group to row group.
            written = rows.slice(0, full).unify_dictionaries().combine_chunks()
            self._parquet.write_table(written, row_group_size=ROW_GROUP_ROWS)
            self._pending = [rows.slice(full)] if full < len(rows) else []
            self._pending_lists = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            # Also after an error the writer is closed before its file: deleted open, it would write to a closed file.
            with self._parquet:
                if kind is None:
                    self._finish()
            if kind is None:
                self._file.commit()
        finally:
            self._file.discard()

    def _finish(self) -> None:
        """Write the last rows and the metadata."""
        self._flush(rest=True)
        self.digest = self._hash.hexdigest()
        meanings = {name: meaning for name, (_, meaning) in self._definition.columns.items()}
        self._parquet.add_key_value_metadata(
            {
                "tokenuq.table": self.table,
                **self._stamp,
                "tokenuq.content_hash": self.digest,
                "tokenuq.columns": json.dumps(meanings),
            }
        )


def _repeats(field: pa.Field) -> bool:
    """Return whether values of a column repeat often enough for a dictionary."""
    return field.name != "position" and not (pa.types.is_floating(field.type) or pa.types.is_nested(field.type))


def write_table(
    frame: pl.DataFrame | pa.Table, table: str, folder: str | Path, *, spec_hash: str, code_version: str
) -> str:
    """Write one partition from a single frame and return its content hash; see `TableWriter`."""
    with TableWriter(table, folder, spec_hash=spec_hash, code_version=code_version) as writer:
        writer.append(frame)
    return writer.digest


def _cast(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(dtype):
        # Through plain strings: dictionaries of other index types, and views, do not cast directly.
        return column.cast(pa.string()).dictionary_encode().cast(dtype)
    return column.cast(dtype)


def read_table(folder: str | Path) -> pl.DataFrame:
    """Return one partition as a DataFrame, without its partition columns."""
    return pl.read_parquet(Path(folder) / "part-*.parquet", hive_partitioning=False)


def stream_table(
    folder: str | Path, columns: list[str], rows: int = 256, first: int = 0, count: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield some columns of one partition in file order, `rows` at a time, in bounded memory.

    Args:
        folder: of the partition.
        columns: to read.
        rows: of each batch.
        first: row to begin with. Row groups before it are not read.
        count: rows to read; None: all.
    """
    # Without a buffer, a column of a row group would be read at once.
    with pq.ParquetFile(Path(folder, "part-0.parquet"), buffer_size=_READ_BYTES) as file:
        groups, skipped = _groups_from(file.metadata, first)
        left = file.metadata.num_rows if count is None else count
        for batch in file.iter_batches(rows, row_groups=groups, columns=columns, use_threads=False):
            if left <= 0:
                return
            taken = batch.slice(min(skipped, batch.num_rows), left)
            skipped, left = max(0, skipped - batch.num_rows), left - taken.num_rows
            if taken.num_rows:
                yield taken


def _groups_from(metadata: pq.FileMetaData, first: int) -> tuple[list[int], int]:
    """Return the row groups from the one that holds a row, and the rows before it in that group."""
    for group in range(metadata.num_row_groups):
        held = metadata.row_group(group).num_rows
        if first < held:
            return list(range(group, metadata.num_row_groups)), first
        first -= held
    return [], 0


def content_of(folder: str | Path) -> str:
    """Return the content hash that the writer stored in a partition's file."""
    return pq.read_metadata(Path(folder, "part-0.parquet")).metadata[b"tokenuq.content_hash"].decode()
