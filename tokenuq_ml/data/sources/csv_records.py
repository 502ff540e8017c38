"""Read CSV and TSV record by record: memory holds a row, never the file.

Python's `csv` splits the rows. The CSV reader of `datasets` is that of pandas: it turns the texts `nan` and `None` into
missing values and digits into numbers, does not report lines, and stops at the first row with too many cells.
"""

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path

from tokenuq_ml.data.sources.data_stream import open_data
from tokenuq_ml.data.sources.records import BrokenRow, LeftOutRow, Record, TruncatedFile
from tokenuq_ml.errors import InputError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
_MAX_CELL = 64 * 2**20
_SWALLOWED = {False: (30, 0.95), True: (3, 0.8)}
"""Whether a row is broken -> from how many lines, and from which share of them that are rows themselves, one quotation
holds what were many rows.

A line is a row itself if, alone, it has as many cells as the first row names. Some answers hold such lines too: lists
and tables. Hence the long and nearly pure stretch in a row that could be right, whose first and last line count too.
"""
_ALWAYS_SWALLOWED = 100
"""Lines of a broken row from which its quotation was not closed, whatever the lines hold."""


def csv_rows(path: Path, delimiter: str = ",") -> Iterator[Record]:
    """Yield a record per row: column name of the first row -> text.

    Raises:
        TruncatedFile: a quotation is open at the end, or the last line has no line end and too few cells.
        InputError: the first row names a column twice, or none; or a quotation that is not closed makes one row out of
            many.
    """
    index, before = 0, csv.field_size_limit()
    with contextlib.ExitStack() as stack:
        csv.field_size_limit(_MAX_CELL)
        stack.callback(csv.field_size_limit, before)
        stream = stack.enter_context(open_data(path))
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = _Rows(text, delimiter)
        names = _header(path, rows, delimiter)
        short: Record | None = None
        for line, cells in rows:
            if short:
                yield short
                index, short = index + 1, None
            _require_closed(path, line, cells, rows, len(names))
            if isinstance(cells, csv.Error):
                if "unexpected end" in str(cells):
                    raise TruncatedFile(f"line {line}", index)
                yield Record(index, line, BrokenRow("not CSV", f"not CSV ({cells}{_extent(line, rows)})"))
            elif [cells[0].removeprefix("\ufeff"), *cells[1:]] == names:
                detail = "repeats the first row, which names the columns, as joined files do"
                yield Record(index, line, LeftOutRow("repeated header", detail))
            elif len(cells) == len(names):
                yield Record(index, line, dict(zip(names, cells, strict=True)))
            else:
                detail = f"has {len(cells)} cells, the first row names {len(names)} columns{_extent(line, rows)}"
                wrong_length = Record(index, line, BrokenRow("not CSV", detail))
                if len(cells) < len(names):
                    # Broken if lines follow; if it is the last line, perhaps truncated.
                    short = wrong_length
                    continue
                yield wrong_length
            index += 1
        if short and not rows.ended:
            raise TruncatedFile(f"line {short.line}", index)
        if short:
            yield short
            index += 1
        if stream.is_truncated:
            raise TruncatedFile(f"line {rows.line_num + 1}", index)


class _Rows:
    """The rows of a CSV file, each with the line on which it begins; blank ones are left out.

    Attributes:
        lines: the lines of the row that was read last.
        ended: whether the line that was read last has a line end.
    """

    def __init__(self, text: io.TextIOWrapper, delimiter: str):
        self._text, self.delimiter = text, delimiter
        self._reader = csv.reader(self._remembered(), strict=True, delimiter=delimiter)
        self.lines: list[str] = []
        self.ended = True

    @property
    def line_num(self) -> int:
        """Number of lines that were read."""
        return self._reader.line_num

    def _remembered(self) -> Iterator[str]:
        for line in self._text:
            self.lines.append(line)
            self.ended = line.endswith(("\n", "\r"))
            yield line

    def __iter__(self) -> Iterator[tuple[int, list[str] | csv.Error]]:
        while True:
            line = self.line_num + 1
            self.lines = []
            cells: list[str] | csv.Error
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = error
            if cells:
                yield line, cells

    def header(self) -> list[str]:
        """Return the cells of the first row; empty if there is none."""
        return next(self._reader, [])


def _header(path: Path, rows: _Rows, delimiter: str) -> list[str]:
    try:
        names = rows.header()
    except csv.Error as error:
        raise InputError(f"{path}: line 1: not CSV ({error})") from None
    if not names or len(set(names)) < len(names):
        raise InputError(f"{path}: the first row must name each column once; names {', '.join(names) or 'none'}")
    other = next((word for sign, word in _OTHER_DELIMITERS.items() if sign != delimiter and sign in names[0]), None)
    if len(names) == 1 and other:
        raise InputError(
            f"{path}: its first row names a single column, {names[0][:80]!r}; columns seem to be separated by {other}: "
            "separate them by commas in .csv and by tabs in .tsv"
        )
    return names


def _require_closed(path: Path, line: int, cells: list[str] | csv.Error, rows: _Rows, n_columns: int) -> None:
    """Check that a row of many lines is not many rows, inside a quotation that was never closed.

    Raises:
        InputError: most of its inner lines have the cells of a row, or it is broken and very long.
    """
    is_broken = isinstance(cells, csv.Error) or len(cells) != n_columns
    least, share = _SWALLOWED[is_broken]
    if len(rows.lines) < least or not any('"' in one for one in rows.lines):
        return
    filled = [one for one in rows.lines if one.strip()]
    if len(filled) < 3:
        return
    first, *inner, last = filled
    if is_broken:
        swallowed = len(rows.lines) >= _ALWAYS_SWALLOWED or _share_of_rows(inner, rows, n_columns) >= share
    else:
        ends = _share_of_rows([first, last], rows, n_columns) == 1 and not last.lstrip().startswith('"')
        swallowed = ends and _share_of_rows(inner, rows, n_columns) >= share
    if swallowed:
        raise InputError(
            f"{path}: line {line}: the quotation that opens at {_opening(rows.lines[0])!r} is not closed before line "
            f"{rows.line_num}, so that {len(rows.lines)} lines would be one row; close it, or write a quotation mark "
            "inside a quotation twice"
        )


def _share_of_rows(lines: list[str], rows: _Rows, n_columns: int) -> float:
    """Return the share of lines that, alone, have `n_columns` cells; 0 for a single column, which every line has."""
    if not lines or n_columns == 1:
        return 0
    alone = csv.reader(lines, delimiter=rows.delimiter, quoting=csv.QUOTE_NONE)
    return sum(len(cells) == n_columns for cells in alone) / len(lines)


def _opening(line: str) -> str:
    """Return where the last quotation of a line opens, with the beginning of its text."""
    return line.rstrip()[line.rstrip().rfind('"') :][:40]


def _extent(line: int, rows: _Rows) -> str:
    return f"; the row holds lines {line} to {rows.line_num}" if len(rows.lines) > 1 else ""
