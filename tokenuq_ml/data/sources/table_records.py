"""Read Parquet and Arrow record by record: memory holds a batch, never the file.

pyarrow reads the batches, and `datasets` decodes the types of column that it adds. `datasets.load_dataset` would copy
the files into its cache first, and neither it nor `load_from_disk` skips a row that cannot be read or keeps the
complete rows of a truncated file.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenuq_ml.data.sources.records import BrokenRow, Record, TruncatedFile
from tokenuq_ml.errors import InputError

_BATCH = 256
_BUFFER = 2**20
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_MAGIC = b"ARROW1"
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""Errors of Arrow's readers on a damaged file; the last one for names of columns."""


def parquet_rows(path: Path) -> Iterator[Record]:
    """Yield a record per row.

    Raises:
        InputError: the file is damaged or truncated. A Parquet file ends with its index, so that no row of a truncated
            file can be read.
    """
    index = 0
    try:
        # Without a buffer, a column of a row group would be read at once.
        with pq.ParquetFile(path, buffer_size=_BUFFER) as file:
            decode = _decoder(file.schema_arrow)
            for batch in file.iter_batches(_BATCH, use_threads=False):
                for value in _rows(batch, decode):
                    yield Record(index, None, value)
                    index += 1
    except _UNREADABLE as error:
        raise InputError(
            f"{path}: is not complete Parquet after row {index} ({_first_line(error)}); copy the file again"
        ) from None


def arrow_rows(path: Path) -> Iterator[Record]:
    """Yield a record per row, from Arrow's file format or from its streaming format, which `datasets` writes.

    Raises:
        TruncatedFile: the file ends too early; the complete records are those of the batches before.
        InputError: the file is damaged.
    """
    index = 0
    with pa.OSFile(str(path)) as file:
        size = file.size()
        framed = file.read(len(_MAGIC)) == _MAGIC
        file.seek(max(0, size - len(_STREAM_END)))
        ended = size > 2 * len(_MAGIC) and file.read().endswith(_MAGIC if framed else _STREAM_END)
        try:
            for batch in _batches(file, framed, ended):
                for value in _rows(batch, _decoder(batch.schema)):
                    yield Record(index, None, value)
                    index += 1
        except _UNREADABLE as error:
            if ended:
                raise InputError(
                    f"{path}: is not Arrow after row {index} ({_first_line(error)}); copy the file again"
                ) from None
    if not ended:
        raise TruncatedFile(f"row {index + 1}", index)


def _batches(file: pa.NativeFile, framed: bool, ended: bool) -> Iterator[pa.RecordBatch]:
    if framed and ended:
        with pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
        return
    # The file format is the streaming format between two marks, so a file without its index can be read as a stream.
    file.seek(8 if framed else 0)
    with pa.ipc.open_stream(file) as reader:
        yield from reader


_Decode = Callable[[dict[str, Any]], dict[str, Any]]


def _decoder(schema: pa.Schema) -> _Decode | None:
    """Return what decodes a row that `datasets` has written with columns of JSON; None if there are none."""
    if b'"Json"' not in (schema.metadata or {}).get(b"huggingface", b""):
        return None
    from datasets import Features

    decode: _Decode = Features.from_arrow_schema(schema).decode_example
    return decode


def _rows(batch: pa.RecordBatch, decode: _Decode | None) -> Iterator[dict[str, Any] | BrokenRow]:
    try:
        # Before any value is read: lengths in a damaged file may point outside of it.
        batch.validate(full=True)
        rows = batch.to_pylist()
    except _UNREADABLE:
        rows = _one_by_one(batch)
    for row in rows:
        if decode is None or isinstance(row, BrokenRow):
            yield row
            continue
        try:
            yield decode(row)
        except ValueError as error:
            yield BrokenRow("not JSON", f"a column of JSON holds something else ({_first_line(error)})")


def _one_by_one(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BrokenRow]:
    """Yield each row of a damaged batch that can be read, and a BrokenRow for each that cannot."""
    for number in range(batch.num_rows):
        row = batch.slice(number, 1)
        try:
            row.validate(full=True)
            yield from row.to_pylist()
        except _UNREADABLE as error:
            if "UTF8" in str(error) or isinstance(error, UnicodeDecodeError):
                yield BrokenRow("invalid Unicode", "is not valid Unicode (a broken byte)")
            else:
                yield BrokenRow("unreadable", f"cannot be read ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:200]
