"""Write the result of a query as an aligned table, CSV, JSON, Parquet or Markdown.

Rows are written as they are computed, some thousand at a time, so a result may be larger than memory. DuckDB turns
values into text, the same for every format.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import duckdb
import polars as pl
import pyarrow.parquet as pq

from tokenuq_ml.control_characters import escaped

_BATCH_ROWS = 16 * 1024
_PAGE_ROWS = 1000
"""Rows that decide the widths of an aligned table's columns; waiting for all rows would take memory."""
_CELL = 80
"""Columns of the terminal that a value of an aligned table may take; other formats do not cut values."""
_FLOATS, _INTEGERS = ("FLOAT", "DOUBLE", "DECIMAL"), ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
_NUMBERS = (*_FLOATS, *_INTEGERS, "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")


def write_csv(result: duckdb.DuckDBPyRelation, stream: BinaryIO) -> int:
    """Write comma-separated values with a header; return the number of rows. Null is empty, an empty string is `""`."""
    rows, header = 0, True
    for frame in _frames(result.project("COLUMNS(*)::VARCHAR")):
        # Not by polars into the stream: polars would hide the error of a closed pipe.
        stream.write(frame.write_csv(include_header=header).encode())
        rows, header = rows + len(frame), False
    return rows


def write_json(result: duckdb.DuckDBPyRelation, stream: BinaryIO) -> int:
    """Write an array of objects, one per line; return the number of rows. NaN and infinities are null."""
    # The projection gives columns of the same name different names: an object has each key once.
    result = result.project("*")
    names = [f'"{name.replace(chr(34), chr(34) * 2)}"' for name in result.columns]
    floats = [str(dtype) in ("FLOAT", "DOUBLE") for dtype in result.types]
    values = (
        f"CASE WHEN isfinite({name}) THEN {name} END AS {name}" if is_float else name
        for name, is_float in zip(names, floats, strict=True)
    )
    objects = result.project(", ".join(values)).set_alias("tokenuq_row").project("to_json(tokenuq_row)::VARCHAR")
    rows = 0
    for frame in _frames(objects):
        for line in frame.to_series():
            stream.write((",\n" if rows else "[\n").encode() + line.encode())
            rows += 1
    stream.write(b"\n]\n" if rows else b"[]\n")
    return rows


def write_parquet(result: duckdb.DuckDBPyRelation, stream: BinaryIO) -> int:
    """Write Parquet with zstd, in row groups of 128k rows; return the number of rows."""
    rows = 0
    with result.project("*").to_arrow_reader(128 * 1024) as reader:
        with pq.ParquetWriter(stream, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
                rows += batch.num_rows
    return rows


def write_markdown(result: duckdb.DuckDBPyRelation, stream: BinaryIO) -> int:
    """Write a table in GitHub's Markdown, numbers to the right, with six digits; return the number of rows."""
    numbers, rows = _are_numbers(result), 0
    header = _escaped(_visible(pl.Series(result.columns)))
    _write_lines(stream, pl.Series(["| " + " | ".join(header) + " |"]))
    _write_lines(stream, pl.Series(["|" + "|".join("---:" if number else "---" for number in numbers) + "|"]))
    for page in _pages(result):
        cells = [text if number else _escaped(text) for text, number in zip(page, numbers, strict=True)]
        _write_lines(stream, "| " + _joined(cells, " | ") + " |")
        rows += len(cells[0])
    return rows


def write_table(result: duckdb.DuckDBPyRelation, stream: BinaryIO) -> int:
    """Write an aligned table, numbers with six digits, long values cut; return the number of rows.

    Columns are as wide as the first thousand rows need; a wider value further down moves the rest of its row.
    """
    numbers, rows, widths = _are_numbers(result), 0, None
    for page in _pages(result):
        cells = [_cut(text) for text in page]
        if widths is None:
            names = [_visible(pl.Series([name])) for name in result.columns]
            widths = [max(_widths(pl.concat([name, cell]))) for name, cell in zip(names, cells, strict=True)]
            _write_lines(stream, _joined(map(_aligned, names, widths, numbers), "  ").str.strip_chars_end())
            _write_lines(stream, pl.Series(["  ".join("─" * width for width in widths)]))
        _write_lines(stream, _joined(map(_aligned, cells, widths, numbers), "  ").str.strip_chars_end())
        rows += len(cells[0])
    _write_lines(stream, pl.Series([f"({rows:,} {'row' if rows == 1 else 'rows'})"]))
    return rows


WRITERS: dict[str, Callable[[duckdb.DuckDBPyRelation, BinaryIO], int]] = {
    "table": write_table,
    "csv": write_csv,
    "json": write_json,
    "parquet": write_parquet,
    "markdown": write_markdown,
}


class TerminalText:
    """A binary stream that writes text to a terminal, with control characters as escapes."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream

    def write(self, data: bytes) -> int:
        """Write complete characters."""
        return self._stream.write(escaped(data.decode()).encode())


def display_width(text: str) -> int:
    """Return the columns that `text` takes in a terminal: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _frames(result: duckdb.DuckDBPyRelation, rows: int = _BATCH_ROWS) -> Iterator[pl.DataFrame]:
    """Yield the rows in batches; one empty frame if there are none."""
    with result.to_arrow_reader(rows) as reader:
        empty = True
        for batch in reader:
            empty = False
            yield pl.from_arrow(batch)
        if empty:
            yield pl.from_arrow(reader.schema.empty_table())


def _pages(result: duckdb.DuckDBPyRelation) -> Iterator[list[pl.Series]]:
    """Yield pages of columns as printable text: floats with six digits, missing values as `null`."""
    texts = []
    # By number: names may occur twice.
    for number, dtype in enumerate(result.types, 1):
        is_float = str(dtype).startswith(_FLOATS)
        texts.append(f"format('{{:.6g}}', #{number}::DOUBLE)" if is_float else f"#{number}::VARCHAR")
    for frame in _frames(result.project(", ".join(texts)), _PAGE_ROWS):
        yield [_visible(column.fill_null("null")) for column in frame]


def _are_numbers(result: duckdb.DuckDBPyRelation) -> list[bool]:
    return [str(dtype).partition("(")[0] in _NUMBERS for dtype in result.types]


def _joined(cells: Iterable[pl.Series], between: str) -> pl.Series:
    columns = {str(number): cell for number, cell in enumerate(cells)}
    return pl.DataFrame(columns).select(pl.concat_str(pl.all(), separator=between)).to_series()


def _write_lines(stream: BinaryIO, lines: pl.Series) -> None:
    if len(lines):
        stream.write(("\n".join(lines) + "\n").encode())


def _visible(texts: pl.Series) -> pl.Series:
    """Return line breaks and control characters as escapes: a token may be one, and must not control the terminal."""
    if not texts.str.contains(r"[[\p{C}\p{Z}]&&[^ ]]").any():
        return texts
    return pl.Series(
        ["".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) for text in texts]
    )


def _cut(texts: pl.Series) -> pl.Series:
    """Cut each text to `_CELL` columns."""
    if (texts.str.len_bytes() <= _CELL).all():
        return texts
    return pl.Series([_cut_one(text) for text in texts])


def _cut_one(text: str) -> str:
    if text.isascii():
        return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
    if display_width(text) <= _CELL:
        return text
    # Bounds the work: every character takes at least one column, except combining ones.
    text = text[: 4 * _CELL]
    while display_width(text) > _CELL - 1:
        text = text[:-1]
    return text + "…"


def _aligned(texts: pl.Series, width: int, number: bool) -> pl.Series:
    if number:
        return texts.str.pad_start(width)
    if (texts.str.len_bytes() == texts.str.len_chars()).all():
        return texts.str.pad_end(width)
    return pl.Series([text + " " * (width - display_width(text)) for text in texts])


def _widths(texts: pl.Series) -> list[int]:
    return [display_width(text) for text in texts]


def _escaped(texts: pl.Series) -> pl.Series:
    """Escape text so that Markdown shows it as it is."""
    return texts.str.replace_all(r"([\\`*_{}\[\]<>()#|~&!])", r"\$1")
