"""Open a text file of data as UTF-8 bytes, whatever compression and encoding it has on disk.

fsspec unpacks gzip, bzip2 and xz, pyarrow zstandard and LZ4, for which fsspec needs further packages. The encoding is
changed here: `codecs.StreamReader` splits lines at characters that JSON allows inside a text (U+2028).
"""

import codecs
import contextlib
import io
import lzma
import re
import zlib
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from tokenuq_ml.errors import InputError

CHUNK = 2**20
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_ARCHIVES = {b"PK\x03\x04": "ZIP", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "RAR"}
_OTHERS = {
    b"version https://git-lfs.github.com": "a pointer of Git LFS, and not the file itself; run `git lfs pull`",
    b"SQLite format 3\0": "an SQLite database; export the table as CSV or Parquet",
    b"%PDF-": "a PDF; save its text",
    b"\x80\x04\x95": "a Python pickle, which is not read because it may run code; save the rows as JSON or Parquet",
    b"\x80\x05\x95": "a Python pickle, which is not read because it may run code; save the rows as JSON or Parquet",
}
"""First bytes of files that hold no rows -> what they are, and what to do."""
_WORKBOOKS = (".xlsx", ".xlsm", ".ods")
_PAGE = (b"<!doctype html", b"<html")
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_HEAD = 512
# UTF-32 first: its mark begins as that of UTF-16.
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_ARROW_CHUNK = 2**16
"""Bytes per call of pyarrow's streams: a call that meets the end of a truncated file returns nothing."""
_LONE_RETURN = re.compile(rb"\r(?!\n)")
_ROOM = 16
"""Bytes of a chunk that are left for those that follow carriage returns at its end."""
_DAMAGED = (OSError, zlib.error, lzma.LZMAError, pa.ArrowException)


class DataStream(io.BufferedReader):
    """The bytes of a data file, in UTF-8. `tell` counts bytes after unpacking."""

    @property
    def is_truncated(self) -> bool:
        """Whether the compressed file has ended too early; known at the end of the stream."""
        return bool(getattr(self.raw, "is_truncated", False))


def open_lines(path: Path) -> DataStream:
    r"""Open a file of JSON or plain text as `open_data` does; carriage returns alone end lines too, as `\n` does.

    Not for CSV, whose quoted cells may hold them. JSON texts hold none as they are.
    """
    return DataStream(_WithLineEnds(open_data(path)), CHUNK)


def open_data(path: Path) -> DataStream:
    """Open a file of JSON or CSV.

    Raises:
        InputError: it is an archive of several files, its compression is damaged, or it is UTF-16 without a byte order
            mark.
    """
    compression = compression_of(path)
    raw: io.RawIOBase = _Unpacked(path, compression) if compression else io.FileIO(path)
    stream = DataStream(raw, CHUNK)
    try:
        head = _head(stream)
        _require_no_archive(path, head)
        encoding = _encoding(path, head)
    except InputError:
        stream.close()
        raise
    return DataStream(_Recoded(path, stream, encoding), CHUNK) if encoding else stream


def compression_of(path: Path) -> str | None:
    """Return how the file is compressed, by its first bytes: its name may lack the ending.

    Raises:
        InputError: it is an archive of several files.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    _require_no_archive(path, head)
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


def encoding_of(head: bytes) -> str | None:
    """Return the encoding that a byte order mark at the beginning states, if it is not UTF-8."""
    return next((name for mark, name in _BOMS.items() if head.startswith(mark)), None)


def _head(stream: DataStream) -> bytes:
    """Return the first bytes without moving; `peek` of a stream that is unpacked may return fewer."""
    return stream.peek(_HEAD)[:_HEAD]


def require_data(path: Path, is_text: bool = False) -> None:
    """Check that a file is none of the things that are often in the place of data.

    Args:
        path: the file.
        is_text: whether it is read as plain text, which may be a web page.

    Raises:
        InputError: it is one; the message says what to do.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    found = next((words for magic, words in _OTHERS.items() if head.startswith(magic)), None)
    if found is None and not is_text and head.lstrip().lower().startswith(_PAGE):
        found = "a web page, perhaps of an error or a login; download the file itself"
    if found is not None:
        raise InputError(f"{path}: is {found}")


def _require_no_archive(path: Path, head: bytes) -> None:
    if head.startswith(b"PK\x03\x04") and (b"[Content_Types].xml" in head or path.suffix.lower() in _WORKBOOKS):
        raise InputError(f"{path}: is a workbook of Excel; save the sheet as CSV (UTF-8)")
    kind = next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), None)
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + len(_TAR_MAGIC)] == _TAR_MAGIC:
        kind = "tar"
    if kind:
        raise InputError(f"{path}: is a {kind} archive; unpack it and name the folder of its files")


def _encoding(path: Path, head: bytes) -> str | None:
    encoding = encoding_of(head)
    # Rows begin with characters of ASCII, one of whose two bytes is zero in UTF-16.
    even, odd = head[0:8:2], head[1:8:2]
    for name, zeros, others in (("UTF-16-LE", odd, even), ("UTF-16-BE", even, odd)):
        if encoding is None and len(head) >= 8 and not any(zeros) and all(others):
            raise InputError(f"{path}: is {name} without a byte order mark; save it as UTF-8, or with the mark")
    return encoding


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a compressed file; one that is cut ends early and sets `is_truncated`."""

    def __init__(self, path: Path, compression: str):
        self.is_truncated = False
        self._path, self._compression, self._position = path, compression, 0
        self._of_arrow = compression in ("zstd", "lz4")
        self._source = self._opened()

    def _opened(self) -> Any:
        if self._of_arrow:
            return pa.CompressedInputStream(pa.OSFile(str(self._path)), self._compression)
        return fsspec.open(str(self._path), "rb", compression=self._compression).open()

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        try:
            # `read` of gzip loses what it has unpacked if the file ends within the call.
            size = len(buffer)
            data = b"" if self.is_truncated else self._source.read1(min(size, _ARROW_CHUNK) if self._of_arrow else size)
        except EOFError:
            self.is_truncated, data = True, b""
        except _DAMAGED as error:
            if "truncated" not in str(error).lower():
                raise InputError(
                    f"{self._path}: its {self._compression} compression is damaged after byte {self._position:,} of "
                    f"the unpacked data ({error}); copy the file again"
                ) from None
            self.is_truncated, data = True, self._last_bytes()
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _last_bytes(self) -> bytes:
        """Return the bytes before the end of a truncated file, read one by one from another stream."""
        data = []
        with contextlib.suppress(*_DAMAGED), self._opened() as again:
            left = self._position
            while left:
                left -= len(again.read(min(left, _ARROW_CHUNK)))
            while byte := again.read(1):
                data.append(byte)
        return b"".join(data)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


class _Recoded(io.RawIOBase):
    """The text of a stream in another encoding, as UTF-8."""

    def __init__(self, path: Path, source: DataStream, encoding: str):
        self.is_truncated = False
        self._path, self._source, self._position, self._rest = path, source, 0, b""
        self._encoding = encoding
        # Lone surrogates pass: they cost their row, not the file.
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            raw = self._source.read1(CHUNK)
            self._rest = self._utf8(raw)
            if not raw:
                self.is_truncated |= self._source.is_truncated
                break
        data, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _utf8(self, raw: bytes) -> bytes:
        try:
            return self._decoder.decode(raw, final=not raw).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            if not raw:
                # The file ends inside a character.
                self.is_truncated = True
                return b""
            raise InputError(
                f"{self._path}: is not valid {self._encoding.upper()} after byte {self._position:,} of its text "
                f"({error.reason}); save it as UTF-8"
            ) from None

    def close(self) -> None:
        self._source.close()
        super().close()


class _WithLineEnds(io.RawIOBase):
    r"""The bytes of a stream with `\n` for each `\r` that none follows; their number stays the same."""

    def __init__(self, source: DataStream):
        self._source = source

    @property
    def is_truncated(self) -> bool:
        return self._source.is_truncated

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._source.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._source.read1(max(1, len(buffer) - _ROOM))
        # The byte after a carriage return decides what it is.
        while data.endswith(b"\r") and len(data) < len(buffer) and (following := self._source.read1(1)):
            data += following
        if b"\r" in data:
            data = _LONE_RETURN.sub(b"\n", data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()
