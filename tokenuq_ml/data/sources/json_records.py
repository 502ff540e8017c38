"""Read JSON record by record, from one list or from one object per line: memory holds a chunk, never the file.

A record that is not JSON is reported as broken and skipped. No library does this: the JSON reader of `datasets` stops
at the first broken record, and so does ijson, which streams too. Neither reports lines, and a truncated file must be
told from a broken one. Values are decoded by Python's own decoder, in C.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tokenuq_ml.data.sources import json_window
from tokenuq_ml.data.sources.data_stream import open_lines
from tokenuq_ml.data.sources.json_window import EndOfFile, Window, is_cut_off, not_json
from tokenuq_ml.data.sources.records import BrokenRow, Record, TruncatedFile
from tokenuq_ml.errors import InputError

_BOM = b"\xef\xbb\xbf"


def is_list(path: Path) -> bool:
    """Return whether the first character that is not white space opens a list."""
    with open_lines(path) as file:
        head = file.read(len(_BOM)).removeprefix(_BOM)
        while not head.strip():
            head = file.read(json_window.CHUNK)
            if not head:
                return False
    return head.lstrip().startswith(b"[")


def json_lines(path: Path) -> Iterator[Record]:
    """Yield a record per line that is not blank.

    Raises:
        TruncatedFile: the last line has no line end and is not complete.
    """
    index = number = 0
    with open_lines(path) as file:
        for number, line in enumerate(lines(file), 1):
            if line is None:
                detail = f"holds more than {json_window.MAX_RECORD:,} bytes"
                yield Record(index, number, BrokenRow("too large", detail))
                index += 1
                continue
            if not line.strip():
                continue
            text = line.decode("utf-8", "surrogateescape")
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n") and (is_cut_off(error, text) or file.is_truncated):
                    raise TruncatedFile(f"line {number} (byte {file.tell() - len(line):,})", index) from None
                value = not_json(error)
            yield Record(index, number, value)
            index += 1
        if file.is_truncated:
            raise TruncatedFile(f"line {number + 1} (byte {file.tell():,})", index)


def lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield lines with their line ends, without byte order marks; None for a line that is too long.

    Files that were joined may have marks at several lines.
    """
    most = json_window.MAX_RECORD + 1
    line = file.readline(most)
    while line:
        if len(line) >= most and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(json_window.CHUNK)
            yield None
        else:
            yield line.removeprefix(_BOM)
        line = file.readline(most)


def json_list(path: Path, field: str | None = None) -> Iterator[Record]:
    """Yield a record per value of the list.

    Args:
        path: the file.
        field: the key of the list in the file's only object; None if the file is the list.

    Raises:
        TruncatedFile: the file ends before the list does.
        InputError: text follows the list; the object lacks the key, or it holds no list.
    """
    with open_lines(path) as file:
        window, index = Window(file), 0
        window.next()
        if field is not None:
            _move_to_field(window, path, field)
        window.move(window.at + 1)
        follows = window.next()
        while follows != "]":
            line = window.line
            try:
                if not follows:
                    raise EndOfFile(window.byte_offset())
                yield Record(index, line, window.value())
                index += 1
                follows = window.next()
                while follows not in (",", "]"):
                    line = window.line
                    if not follows:
                        raise EndOfFile(window.byte_offset())
                    window.skip()
                    yield Record(index, line, BrokenRow("not JSON", "not JSON (a comma is missing before it)"))
                    index += 1
                    follows = window.next()
            except EndOfFile as end:
                raise TruncatedFile(f"line {line} (byte {end.byte:,})", index) from None
            if follows == ",":
                window.move(window.at + 1)
                follows = window.next()
        window.move(window.at + 1)
        _require_end(window, path, field, index)
        if file.is_truncated:
            raise TruncatedFile(f"line {window.line} (byte {file.tell():,})", index)


def _move_to_field(window: Window, path: Path, field: str) -> None:
    """Move to the bracket that opens the list in the field of the object that begins here."""
    if window.next() != "{":
        raise InputError(f"{path}: `field: {field}` names a key of one JSON object, which the file is not; remove it")
    keys = []
    try:
        for key, follows in window.keys():
            if key == field:
                if follows == "[":
                    return
                raise InputError(f"{path}: the key {field!r}, which `field:` names, does not hold a list of rows")
            keys.append(key)
    except EndOfFile as end:
        raise TruncatedFile(f"line {window.line} (byte {end.byte:,})", 0) from None
    raise InputError(f"{path}: has no key {field!r}, which `field:` names; its keys are {', '.join(keys[:20])}")


def _require_end(window: Window, path: Path, field: str | None, complete: int) -> None:
    """Check that nothing follows the list but the rest of the object that holds it."""
    try:
        if field is not None:
            for _ in window.keys(is_open=True):
                pass
            window.move(window.at + 1)
    except EndOfFile as end:
        raise TruncatedFile(f"line {window.line} (byte {end.byte:,})", complete) from None
    if window.next():
        what = "list; use one list, or one object per line" if field is None else "object; `field:` needs a single one"
        raise InputError(f"{path}: line {window.line}: text follows the end of the {what}")
