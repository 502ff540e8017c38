"""Reads Parquet, Arrow and CSV record by record: memory holds a batch, never the file. Does not know what rows mean."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tokenuq_ml.data.sources.records import BrokenRow, EndsInside, Record
from tokenuq_ml.errors import InputError

_BATCH = 256
_BUFFER = 2**20
_MAX_CELL = 64 * 2**20
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_MAGIC = b"ARROW1"
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What Arrow's readers raise over a damaged file; the last one over names of columns."""


def parquet_rows(path: Path) -> Iterator[Record]:
    """A record a row.

    Raises:
        InputError: the file is not whole. Its index comes last, so that nothing of a cut file can be read.
    """
    index = 0
    try:
        # With a buffer, else the whole column of a row group is read at once.
        with pq.ParquetFile(path, buffer_size=_BUFFER) as file:
            for batch in file.iter_batches(_BATCH, use_threads=False):
                for value in _rows(batch):
                    yield Record(index, None, value)
                    index += 1
    except _UNREADABLE as error:
        raise InputError(
            f"{path}: is not whole Parquet after row {index} ({_first_line(error)}); copy it again"
        ) from None


def arrow_rows(path: Path) -> Iterator[Record]:
    """A record a row, of Arrow's file format or of its streaming format, which `datasets` writes.

    Raises:
        EndsInside: the file has no end; what is whole are the batches before.
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
                raise InputError(f"{path}: is not Arrow after row {index} ({_first_line(error)})") from None
    if not ended:
        raise EndsInside(f"row {index + 1}", index)


def _batches(file: pa.NativeFile, framed: bool, ended: bool) -> Iterator[pa.RecordBatch]:
    if framed and ended:
        with pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
        return
    # The file format is the streaming format between two marks: what is there can be read without the index at its end.
    file.seek(8 if framed else 0)
    with pa.ipc.open_stream(file) as reader:
        yield from reader


def csv_rows(path: Path) -> Iterator[Record]:
    """A record a row, as text by the names in the first row.

    Raises:
        EndsInside: a quotation is open at the end, or the last line has no end and too few cells.
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
                    raise EndsInside(f"line {line}", index)
                yield Record(index, line, BrokenRow("not CSV", f"not CSV ({cells})"))
            elif len(cells) == len(names):
                yield Record(index, line, dict(zip(names, cells, strict=True)))
            else:
                detail = f"has {len(cells)} cells, the first row names {len(names)} columns"
                odd = Record(index, line, BrokenRow("not CSV", detail))
                if len(cells) < len(names):
                    # Broken if lines follow; if it is the last, perhaps cut.
                    short = odd
                    continue
                yield odd
            index += 1
        if short and not ended:
            raise EndsInside(f"line {short.line}", index)
        if short:
            yield short


def _csv_lines(reader) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Each row that is not blank with the line that it begins on, or the error in its place."""
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


def _header(path: Path, reader) -> list[str]:
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise InputError(f"{path}: line 1: not CSV ({error})") from None
    if not names or len(set(names)) < len(names):
        raise InputError(f"{path}: the first row must name each column once; names {', '.join(names) or 'none'}")
    return names


def _rows(batch: pa.RecordBatch) -> Iterator[dict | BrokenRow]:
    try:
        # Before anything is read: what a damaged file says of lengths may lie outside of it.
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
