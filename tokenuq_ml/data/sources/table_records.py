"""Read Parquet, Arrow and CSV record by record: memory holds a batch, never the file."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenuq_ml.data.sources.records import BrokenRow, Record, TruncatedFile
from tokenuq_ml.errors import InputError

_BATCH = 256
_BUFFER = 2**20
_MAX_CELL = 64 * 2**20
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
            for batch in file.iter_batches(_BATCH, use_threads=False):
                for value in _rows(batch):
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
                for value in _rows(batch):
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


def csv_rows(path: Path) -> Iterator[Record]:
    """Yield a record per row: column name of the first row -> text.

    Raises:
        TruncatedFile: a quotation is open at the end, or the last line has no line end and too few cells.
        InputError: the first row names a column twice, or none.
    """
    index, before = 0, csv.field_size_limit()
    with contextlib.ExitStack() as stack:
        csv.field_size_limit(_MAX_CELL)
        stack.callback(csv.field_size_limit, before)
        with open(path, "rb") as raw:
            raw.seek(-1, 2) if path.stat().st_size else None
            ended = raw.read(1) in (b"\n", b"\r")
        file = stack.enter_context(open(path, encoding="utf-8-sig", errors="surrogateescape", newline=""))
        reader = csv.reader(file, strict=True)
        names = _header(path, reader)
        short: Record | None = None
        for line, cells in _csv_lines(reader):
            if short:
                yield short
                index, short = index + 1, None
            if isinstance(cells, csv.Error):
                if "unexpected end" in str(cells):
                    raise TruncatedFile(f"line {line}", index)
                yield Record(index, line, BrokenRow("not CSV", f"not CSV ({cells})"))
            elif len(cells) == len(names):
                yield Record(index, line, dict(zip(names, cells, strict=True)))
            else:
                detail = f"has {len(cells)} cells, the first row names {len(names)} columns"
                wrong_length = Record(index, line, BrokenRow("not CSV", detail))
                if len(cells) < len(names):
                    # Broken if lines follow; if it is the last line, perhaps truncated.
                    short = wrong_length
                    continue
                yield wrong_length
            index += 1
        if short and not ended:
            raise TruncatedFile(f"line {short.line}", index)
        if short:
            yield short


def _csv_lines(reader: Any) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield the line on which each non-blank row begins, with its cells or the error that reading it raised."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, error
            continue
        if cells:
            yield line, cells


def _header(path: Path, reader: Any) -> list[str]:
    try:
        names: list[str] = next(reader, [])
    except csv.Error as error:
        raise InputError(f"{path}: line 1: not CSV ({error})") from None
    if not names or len(set(names)) < len(names):
        raise InputError(f"{path}: the first row must name each column once; names {', '.join(names) or 'none'}")
    return names


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BrokenRow]:
    try:
        # Before any value is read: lengths in a damaged file may point outside of it.
        batch.validate(full=True)
        yield from batch.to_pylist()
    except _UNREADABLE:
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
