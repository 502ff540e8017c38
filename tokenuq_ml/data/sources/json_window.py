"""A part of a JSON file's text, which moves and grows as needed, and decodes one value at a time."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from tokenuq_ml.data.sources.records import BrokenRow

MAX_RECORD = 64 * 2**20
"""Largest number of characters of a record; a longer one is skipped and not held in memory."""
CHUNK = 2**20
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")
_NEXT_OBJECT = re.compile(r"\}[ \t\r\n]*(,)[ \t\r\n]*(?=\{)")
_OUTSIDE, _QUOTED = re.compile(r'["{}\[\],]'), re.compile(r'["\\]')
_BEGINNINGS = ("true", "false", "null", "NaN", "Infinity", "-Infinity", ".", "e+", "e-", "E+", "E-")
_decode = json.JSONDecoder().raw_decode


class EndOfFile(Exception):
    """The file ends although the value that begins at `byte` is not complete."""

    def __init__(self, byte: int):
        super().__init__(byte)
        self.byte = byte


class Window:
    """A part of a file's text, which moves and grows as needed.

    Attributes:
        text: the part in memory.
        at: index in `text` of the next character to read.
        line: number of that character's line, from 1.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.line = "", 0, 1
        self._ended = False
        self._keys: set[str] = set()
        """Keys of the last complete object."""
        self._more(len(_BOM))
        self.text = self.text.removeprefix("\ufeff")

    def _more(self, least: int = 0) -> bool:
        """Read a chunk, or `least` bytes, and drop the text before `at`; return False at the end of the file."""
        before = len(self.text) - self.at
        raw = self._file.read(max(CHUNK, least))
        self._ended = not raw
        self.text, self.at = self.text[self.at :] + self._decoder.decode(raw, final=self._ended), 0
        return len(self.text) > before or not self._ended

    def byte_offset(self) -> int:
        """Return the offset in the file of the next character. Slow: for messages."""
        ahead = len(self.text[self.at :].encode("utf-8", "surrogateescape")) + len(self._decoder.getstate()[0])
        return self._file.tell() - ahead

    def move(self, to: int) -> None:
        """Move to the index `to` of `text`."""
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def next(self) -> str:
        """Move to the next character that is not white space and return it; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.move(space.end() if space else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """Return the value that begins here and move behind it; a BrokenRow if it is not JSON.

        Raises:
            EndOfFile: the file ends inside it.
        """
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if not is_cut_off(error, self.text):
                    self._skip_broken()
                    return not_json(error)
            else:
                # More digits of a bare number may follow.
                if end < len(self.text) or isinstance(value, dict | list | str) or self._ended:
                    self.move(end)
                    self._keys = set(value) if isinstance(value, dict) else self._keys
                    return value
            held = len(self.text) - self.at
            if held > MAX_RECORD:
                self.skip()
                return BrokenRow("too large", f"holds more than {MAX_RECORD:,} characters")
            # Twice as much text each time, so that a long record is decoded only a few times.
            if not self._more(held) and held == len(self.text) - self.at:
                raise EndOfFile(self.byte_offset())

    def _skip_broken(self) -> None:
        """Move to the comma before the next object with similar keys as the last complete one.

        If a quotation mark is missing, brackets do not show where the broken record ends. They decide only if no
        similar object follows, as for the last record.
        """
        searched = 0
        while self._keys:
            found = _NEXT_OBJECT.search(self.text, self.at + searched)
            error: Exception | None = None
            if found:
                try:
                    value = _decode(self.text, found.end())[0]
                    if 2 * len(self._keys & set(value)) >= len(self._keys):
                        self.move(found.start(1))
                        return
                except (ValueError, RecursionError) as raised:
                    error = raised
                if error is None or not is_cut_off(error, self.text):
                    searched = found.end() - self.at
                    continue
            elif len(self.text) - self.at < MAX_RECORD:
                # The text so far was searched, except for a comma that may be cut off from its bracket.
                searched = max(searched, self.text.rfind("}", self.at) - self.at)
            if len(self.text) - self.at >= MAX_RECORD or not self._more(len(self.text) - self.at):
                break
        self.skip()

    def keys(self, is_open: bool = False) -> Iterator[tuple[str, str]]:
        """Yield each key of the object that begins here, with the character that opens its value, then skip the value.

        Ends at the bracket that closes the object, or where it is not JSON.

        Args:
            is_open: whether a value of the object has just been read, so that a comma or the bracket follows.

        Raises:
            EndOfFile: the file ends inside the object.
        """
        begun = self.byte_offset()
        if not is_open:
            self.move(self.at + 1)
        follows = self.next()
        while follows != "}":
            if follows == ",":
                self.move(self.at + 1)
                follows = self.next()
            if not follows:
                raise EndOfFile(begun)
            key = self.value() if follows == '"' else None
            separator = self.next()
            if not isinstance(key, str) or separator not in (":", ""):
                return
            self.move(self.at + len(separator))
            opens = self.next()
            if not opens:
                raise EndOfFile(begun)
            yield key, opens
            self.skip(",}")
            follows = self.next()

    def opens_list_of_objects(self) -> bool:
        """Return whether a list begins here whose first value is an object; does not move."""
        while True:
            found = _SPACE.match(self.text, self.at + 1)
            end = found.end() if found else self.at + 1
            if end < len(self.text):
                return self.text[self.at] == "[" and self.text[end] == "{"
            if not self._more():
                return False

    def skip(self, ends: str = ",]") -> None:
        """Move to the comma or bracket after the value that begins here, with at most a chunk in memory.

        Args:
            ends: what follows a value: `,]` in a list, `,}` in an object.

        Raises:
            EndOfFile: there is none.
        """
        begun, depth, quoted = self.byte_offset(), 0, False
        while True:
            found = (_QUOTED if quoted else _OUTSIDE).search(self.text, self.at)
            character = found.group() if found else ""
            if not found or (character == "\\" and found.end() == len(self.text)):
                self.move(found.start() if found else len(self.text))
                if not self._more():
                    raise EndOfFile(begun)
                continue
            if not quoted and not depth and character and character in ends:
                self.move(found.start())
                return
            if character == '"':
                quoted = not quoted
            elif character in "{[":
                depth += 1
            elif character in "}]":
                depth = max(0, depth - 1)
            self.move(found.end() + (character == "\\"))


def is_cut_off(error: Exception, text: str) -> bool:
    """Return whether the value is cut off and not broken: more text could complete it."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    rest = text[error.pos :].rstrip()
    if error.msg.startswith("Invalid \\u"):
        return len(rest) <= len("\\u0000")
    return not rest or error.msg.startswith("Unterminated string") or any(b.startswith(rest) for b in _BEGINNINGS)


def not_json(error: Exception) -> BrokenRow:
    """Return the broken row of text that the decoder has refused with an error."""
    """Return the broken row of text that the decoder has refused with an error."""
    what = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
    if what == "Extra data":
        what = "text follows the object on its line: write one per line, without commas between them"
    return BrokenRow("not JSON", f"not JSON ({what})")
