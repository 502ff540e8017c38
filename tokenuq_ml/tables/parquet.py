"""Write and read the Parquet files of one table's partition, with a hash of the content."""

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tokenuq_ml.atomic_files import AtomicFile
from tokenuq_ml.content_hash import ContentHash
from tokenuq_ml.tables.schemas import TABLES

ROW_GROUP_ROWS = 128 * 1024
_READ_BYTES = 2**20


class TableWriter:
    """Writes one partition of `table` into `folder` as `part-0.parquet`, frame by frame, in bounded memory.

    Columns are put in the schema's order and types, the rows of a frame sorted by the table's keys; frames
    must come in the order of the keys. Used as a context: on leaving, the file appears whole (written
    beside its place, fsynced, renamed), and after an error not at all. Then `digest` is its content hash.

    The layout is chosen for queries, by measuring ten million rows (`benchmarks/queries.py`). Rows sorted by example
    give row groups with narrow ranges of example_id (of step, for selections), so that by the statistics a query for
    one example reads one group. Groups of 128k rows are small enough for that and many enough to share out among
    processors; of 32k, or of a million, an aggregate takes longer. Text and integers get a dictionary (a filter on
    split or category compares a number), positions and numbers with a fraction none: hardly two are equal, and a
    dictionary given up halfway makes the file half as large again; nor lists, which compress as well without.
    Zstandard at its quick default level.

    Raises:
        ValueError: a column is missing, unknown or of a type that does not cast; a frame comes out of order.
    """

    def __init__(self, table: str, folder: str | Path, *, spec_hash: str, code_version: str):
        self.table, self.folder, self.digest = table, Path(folder), ""
        self.path = self.folder / "part-0.parquet"
        self._stamp = {"tokenuq.spec_hash": spec_hash, "tokenuq.code_version": code_version}
        self._definition, self._schema = TABLES[table], TABLES[table].schema
        self._hash = ContentHash(self._schema)
        self._pending: list[pa.Table] = []
        self._last: tuple | None = None

    def __enter__(self) -> "TableWriter":
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
        """Add rows, all of them after those before."""
        data = frame.to_arrow() if isinstance(frame, pl.DataFrame) else frame
        names, keys = self._schema.names, self._definition.keys
        if set(data.column_names) != set(names):
            odd = sorted(set(data.column_names) ^ set(names))
            raise ValueError(f"table {self.table}: columns missing or unknown: {', '.join(odd)}")
        columns = [_cast(data.column(name), self._schema.field(name).type) for name in names]
        data = pa.table(columns, schema=self._schema).sort_by([(key, "ascending") for key in keys]).combine_chunks()
        if not data.num_rows:
            return
        first, last = (tuple(data.column(key)[row].as_py() for key in keys) for row in (0, data.num_rows - 1))
        if self._last is not None and first <= self._last:
            raise ValueError(f"table {self.table}: rows from {first} on come after {self._last}")
        self._last = last
        self._hash.update(data)
        self._pending.append(data)
        if sum(part.num_rows for part in self._pending) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self, rest: bool = False) -> None:
        """Writes row groups that are full, and the rest of the rows only where it says so."""
        if self._pending:
            rows = pa.concat_tables(self._pending)
            full = len(rows) if rest else len(rows) - len(rows) % ROW_GROUP_ROWS
            # Only what is written gets one dictionary, else it would grow from row group to row group.
            written = rows.slice(0, full).unify_dictionaries().combine_chunks()
            self._parquet.write_table(written, row_group_size=ROW_GROUP_ROWS)
            self._pending = [rows.slice(full)] if full < len(rows) else []

    def __exit__(self, kind, *_) -> None:
        try:
            # The writer is closed before its file, also after an error: on deletion it would write to a closed file.
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
    """Whether a column has few values for its rows, so that a dictionary pays."""
    return field.name != "position" and not (pa.types.is_floating(field.type) or pa.types.is_nested(field.type))


def write_table(
    frame: pl.DataFrame | pa.Table, table: str, folder: str | Path, *, spec_hash: str, code_version: str
) -> str:
    """Write one partition that is at hand as a whole; returns its content hash. See `TableWriter`."""
    with TableWriter(table, folder, spec_hash=spec_hash, code_version=code_version) as writer:
        writer.append(frame)
    return writer.digest


def _cast(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(dtype):
        # Via plain strings: dictionaries of other index types or views do not cast directly.
        return column.cast(pa.string()).dictionary_encode().cast(dtype)
    return column.cast(dtype)


def read_table(folder: str | Path) -> pl.DataFrame:
    """One partition as a DataFrame, without its partition columns."""
    return pl.read_parquet(Path(folder) / "part-*.parquet", hive_partitioning=False)


def stream_table(folder: str | Path, columns: list[str], rows: int = 256) -> Iterator[pa.RecordBatch]:
    """Some columns of one partition in the order of the file, `rows` at a time: memory does not grow with the data."""
    # With a buffer, else the whole column of a row group is read at once.
    with pq.ParquetFile(Path(folder, "part-0.parquet"), buffer_size=_READ_BYTES) as file:
        yield from file.iter_batches(rows, columns=columns, use_threads=False)


def content_of(folder: str | Path) -> str:
    """The content hash that the writer left in a partition's file."""
    return pq.read_metadata(Path(folder, "part-0.parquet")).metadata[b"tokenuq.content_hash"].decode()
