"""Data files as bytes: whether they are complete, and a fingerprint of their content.

Asset definitions load this module, so it imports nothing that is slow to load. `datasets` is loaded only for folders
whose names or README.md follow its conventions (`layout.py`).
"""

import hashlib
import json
from pathlib import Path

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".csv", ".tsv")
TEXT = ".txt"
"""Text without structure, for `raw_text`."""
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz", ".lz4")
BINARY = (".parquet", ".arrow")
"""Kinds of files that compress their content themselves."""
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".incomplete", ".swp", "~")
"""Endings that programs give to files while they write them."""
_TAIL_BYTES = 1 << 16
_UTF16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


def kind_of(file: Path) -> str:
    """Return the ending that says what a file holds, without that of its compression."""
    inner = Path(file.stem) if file.suffix.lower() in COMPRESSIONS else file
    return inner.suffix.lower()


def is_data_file(file: Path, kinds: tuple[str, ...] = SUFFIXES) -> bool:
    """Return whether a file has an ending of `kinds`; kinds of text may be compressed."""
    compressed = file.suffix.lower() in COMPRESSIONS
    return kind_of(file) in kinds and not (compressed and kind_of(file) in BINARY)


def signature(root: Path, files: list[Path]) -> list[list[str | int]]:
    """Return name, bytes and modification time (ns) of each file.

    Equal signatures mean equal content, unless somebody resets the modification time on purpose.
    """
    stats = [(file, file.stat()) for file in files]
    return [[_name(root, file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def fingerprint(root: Path, files: list[Path]) -> str | None:
    """Return sixteen hex digits over the content of all files, in order; None if there is no file.

    The name of a single file does not count, so that a copy under another name has the same fingerprint.

    Args:
        root: the file, or the folder that holds the files.
        files: the files that are read.
    """
    if not files:
        return None
    digests = []
    for file in files:
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        # The order of files in a folder, and so of rows, depends on their names.
        digests.append(f"{_name(root, file)}:{digest}" if file != root else digest)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def _name(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix() if file != root and file.is_relative_to(root) else file.name


def why_incomplete(files: list[Path]) -> str | None:
    """Return why files cannot be read yet: empty, or cut; None if all are complete.

    Only the end of a large file is read, so a JSON list that is cut right after an inner list counts as complete. Of a
    compressed file, nothing but its size is known.
    """
    return next((f"{file.name} {reason}" for file in files if (reason := _unfinished(file))), None)


def _unfinished(file: Path) -> str | None:
    size = file.stat().st_size
    if not size:
        return "is empty"
    with open(file, "rb") as opened:
        head = opened.read(8)
        opened.seek(max(0, size - _TAIL_BYTES))
        tail = opened.read()
    kind = kind_of(file)
    if file.suffix.lower() in COMPRESSIONS:
        return None
    if kind == ".parquet":
        return None if head[:4] == tail[-4:] == b"PAR1" and size >= 12 else "does not end as Parquet does"
    if kind == ".arrow":
        # The file format ends with its magic, the stream format (of Hugging Face) with an end-of-stream mark.
        if head.startswith(b"ARROW1"):
            ends = tail[6:].endswith(b"ARROW1")
        else:
            ends = tail.endswith(b"\xff\xff\xff\xff\0\0\0\0")
        return None if ends else "does not end as Arrow does"
    if encoding := _UTF16.get(head[:2]):
        if size % 2:
            return "ends inside a character"
        head, tail = (part.decode(encoding, "replace").encode() for part in (head, tail[len(tail) % 2 :]))
        tail = tail.removeprefix(b"\xef\xbb\xbf")
    if kind == TEXT:
        return None
    if kind in (".csv", ".tsv"):
        return None if tail.endswith((b"\n", b"\r")) else "does not end with a complete line"
    text = tail.rstrip().replace(b"\r", b"\n")
    if kind == ".json" and head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        complete = _is_json(text) if size <= _TAIL_BYTES else text.endswith(b"]")
        return None if complete else "does not end its list"
    return _unfinished_line(text, is_all=size <= _TAIL_BYTES)


def _unfinished_line(text: bytes, is_all: bool) -> str | None:
    """Return what is wrong with the last line of JSON lines or of a single object; None if it is complete.

    Args:
        text: the end of the file.
        is_all: whether `text` is the complete file.
    """
    line = text.rsplit(b"\n", 1)
    last = line[-1]
    if len(line) == 1 and not is_all:
        # The line is longer than `text`: only its end can be checked.
        return None if last.endswith((b"}", b"]")) else "does not end with a complete line"
    # A single object may span several lines, of which `text` may hold only the last.
    if _is_json(last) or (_is_json(text) if is_all else last.strip() == b"}"):
        return None
    return "does not end with a complete line"


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
