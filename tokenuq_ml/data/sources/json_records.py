"""Reads JSON, as one list or as an object a line, record by record: memory holds a chunk, never the file.

A record that is not JSON is passed over and said, and the next one read. This is why the reader is our own:
ijson streams too, but its parsers stop for good at the first error and know no lines, and a file that ends
in the middle has to be told from one that is broken there. The decoder underneath is Python's own, in C.
Does not know what records mean.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tokenuq_ml.data.sources.records import BrokenRow, EndsInside, Record
from tokenuq_ml.errors import InputError

MAX_RECORD = 64 * 2**20
"""Characters of one record; a longer one is passed over without being held."""
CHUNK = 2**20
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")
_NEXT_OBJECT = re.compile(r"\}[ \t\r\n]*(,)[ \t\r\n]*(?=\{)")
_OUTSIDE, _QUOTED = re.compile(r'["{}\[\],]'), re.compile(r'["\\]')
_BEGINNINGS = ("true", "false", "null", "NaN", "Infinity", "-Infinity", ".", "e+", "e-", "E+", "E-")
_decode = json.JSONDecoder().raw_decode


def is_list(path: Path) -> bool:
    """Whether the first character that is not white space opens a list."""
    with open(path, "rb") as file:
        head = file.read(len(_BOM)).removeprefix(_BOM)
        while head is not None and not head.strip():
            head = file.read(CHUNK) or None
    return head is not None and head.lstrip().startswith(b"[")


def json_lines(path: Path) -> Iterator[Record]:
    """A record for each line that is not blank.

    Raises:
        EndsInside: the last line has no end and is not whole.
    """
    index = 0
    with open(path, "rb") as file:
        for number, line in enumerate(_lines(file), 1):
            if line is None:
                yield Record(index, number, BrokenRow("too large", f"holds more than {MAX_RECORD:,} bytes"))
                index += 1
                continue
            if not line.strip():
                continue
            text = line.decode("utf-8", "surrogateescape")
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n") and _may_go_on(error, text):
                    raise EndsInside(f"line {number} (byte {file.tell() - len(line):,})", index) from None
                value = _not_json(error)
            yield Record(index, number, value)
            index += 1


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines with their ends, without a byte order mark; None for one that is too long."""
    line = file.readline(MAX_RECORD + 1).removeprefix(_BOM)
    while line:
        if len(line) > MAX_RECORD and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK)
            yield None
        else:
            yield line
        line = file.readline(MAX_RECORD + 1)


def json_list(path: Path) -> Iterator[Record]:
    """A record for each value of the list.

    Raises:
        EndsInside: the file ends before the list does.
        InputError: text follows the list.
    """
    with open(path, "rb") as file:
        window, index = _Window(file), 0
        window.next()
        window.move(window.at + 1)
        follows = window.next()
        while follows != "]":
            line = window.line
            try:
                if not follows:
                    raise _End(window.place())
                yield Record(index, line, window.value())
                index += 1
                follows = window.next()
                while follows not in (",", "]"):
                    line = window.line
                    if not follows:
                        raise _End(window.place())
                    window.skip()
                    yield Record(index, line, BrokenRow("not JSON", "not JSON (a comma is missing before it)"))
                    index += 1
                    follows = window.next()
            except _End as end:
                raise EndsInside(f"line {line} (byte {end.byte:,})", index) from None
            if follows == ",":
                window.move(window.at + 1)
                follows = window.next()
        window.move(window.at + 1)
        if window.next():
            raise InputError(
                f"{path}: line {window.line}: text follows the end of the list; make it one list, or an object a line"
            )


class _End(Exception):
    """The file is at its end, and what began at `byte` is still open."""

    def __init__(self, byte: int):
        super().__init__(byte)
        self.byte = byte


class _Window:
    """A piece of a file's text, from `at` on not yet read; it grows and moves on as is needed."""

    def __init__(self, file: BinaryIO):
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.line = "", 0, 1
        self._ended, self._keys = False, set()
        self._more(len(_BOM))
        self.text = self.text.removeprefix("\ufeff")

    def _more(self, least: int = 0) -> bool:
        """Reads a chunk, or `least` bytes, and forgets what was read; False at the end of the file."""
        before = len(self.text) - self.at
        raw = self._file.read(max(CHUNK, least))
        self._ended = not raw
        self.text, self.at = self.text[self.at :] + self._decoder.decode(raw, final=self._ended), 0
        return len(self.text) > before or not self._ended

    def place(self) -> int:
        """The byte that the next character begins at. Slow: for messages."""
        ahead = len(self.text[self.at :].encode("utf-8", "surrogateescape")) + len(self._decoder.getstate()[0])
        return self._file.tell() - ahead

    def move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def next(self) -> str:
        """The first character that is not white space, moved to; empty at the end."""
        while True:
            self.move(_SPACE.match(self.text, self.at).end())
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def value(self):
        """The value that begins here, moved past; BrokenRow where it is not JSON.

        Raises:
            _End: the file ends inside it.
        """
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if not _may_go_on(error, self.text):
                    self._skip_broken()
                    return _not_json(error)
            else:
                # A bare number goes on where its digits do.
                if end < len(self.text) or isinstance(value, dict | list | str) or self._ended:
                    self.move(end)
                    self._keys = set(value) if isinstance(value, dict) else self._keys
                    return value
            held = len(self.text) - self.at
            if held > MAX_RECORD:
                self.skip()
                return BrokenRow("too large", f"holds more than {MAX_RECORD:,} characters")
            # As much again: a long record is decoded few times.
            if not self._more(held) and held == len(self.text) - self.at:
                raise _End(self.place())

    def _skip_broken(self) -> None:
        """Moves to the comma before the next object that resembles the last whole one by its keys.

        Where a quotation mark is missing, brackets no longer tell where the broken record ends. They are asked
        where nothing resembles: of the last record.
        """
        searched = 0
        while self._keys:
            found = _NEXT_OBJECT.search(self.text, self.at + searched)
            error = None
            if found:
                try:
                    value = _decode(self.text, found.end())[0]
                    if 2 * len(self._keys & set(value)) >= len(self._keys):
                        self.move(found.start(1))
                        return
                except (ValueError, RecursionError) as raised:
                    error = raised
                if error is None or not _may_go_on(error, self.text):
                    searched = found.end() - self.at
                    continue
            elif len(self.text) - self.at < MAX_RECORD:
                # What is before has been searched, but for a comma that may have been cut from its bracket.
                searched = max(searched, self.text.rfind("}", self.at) - self.at)
            if len(self.text) - self.at >= MAX_RECORD or not self._more(len(self.text) - self.at):
                break
        self.skip()

    def skip(self) -> None:
        """Moves to the comma or bracket after the value that begins here, holding no more than a chunk.

        Raises:
            _End: there is none.
        """
        begun, depth, quoted = self.place(), 0, False
        while True:
            found = (_QUOTED if quoted else _OUTSIDE).search(self.text, self.at)
            character = found.group() if found else ""
            if not found or (character == "\\" and found.end() == len(self.text)):
                self.move(found.start() if found else len(self.text))
                if not self._more():
                    raise _End(begun)
                continue
            if not quoted and not depth and character in ",]":
                self.move(found.start())
                return
            if character == '"':
                quoted = not quoted
            elif character in "{[":
                depth += 1
            elif character in "}]":
                depth = max(0, depth - 1)
            self.move(found.end() + (character == "\\"))


def _may_go_on(error: Exception, text: str) -> bool:
    """Whether more text could have made the value whole: whether it is cut and not broken."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    rest = text[error.pos :].rstrip()
    if error.msg.startswith("Invalid \\u"):
        return len(rest) <= len("\\u0000")
    return not rest or error.msg.startswith("Unterminated string") or any(b.startswith(rest) for b in _BEGINNINGS)


def _not_json(error: Exception) -> BrokenRow:
    what = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
    return BrokenRow("not JSON", f"not JSON ({what})")
