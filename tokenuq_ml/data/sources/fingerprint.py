"""Data files as bytes: which files a path names, whether they are complete, and a fingerprint of their content.

Asset definitions load this module, so it imports only the standard library.
"""

import hashlib
import json
from pathlib import Path

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".csv")
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".incomplete", ".swp", "~")
"""Endings that programs give to files while they write them."""
_TAIL_BYTES = 1 << 16


def files_of(path: str | Path) -> list[Path]:
    """Return the data files at `path`: the file itself, or those directly inside the folder, sorted by name.

    In a folder only files with an ending of `SUFFIXES` count, and no hidden ones. The list is empty if `path` does not
    exist.
    """
    path = Path(path)
    if path.is_dir():
        inside = (file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        return sorted(file for file in inside if file.suffix.lower() in SUFFIXES)
    return [path] if path.is_file() else []


def signature(path: str | Path) -> list[list[str | int]]:
    """Return name, bytes and modification time (ns) of each file.

    Equal signatures mean equal content, unless somebody resets the modification time on purpose.
    """
    stats = [(file, file.stat()) for file in files_of(path)]
    return [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def fingerprint(path: str | Path) -> str | None:
    """Return sixteen hex digits over the content of all files, in order; None if there is no file.

    The name of a single file does not count, so that a copy under another name has the same fingerprint.
    """
    files = files_of(path)
    if not files:
        return None
    digests = []
    for file in files:
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        # The order of files in a folder, and so of rows, depends on their names.
        digests.append(f"{file.name}:{digest}" if Path(path).is_dir() else digest)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def why_incomplete(path: str | Path) -> str | None:
    """Return why the data cannot be read yet: missing, empty or still being written; None if all files are complete.

    Only the end of a large file is read, so a JSON list that is cut right after an inner list counts as complete.
    """
    path = Path(path)
    writing = [file for file in path.iterdir() if file.name.endswith(UNFINISHED)] if path.is_dir() else []
    if writing:
        return f"{writing[0].name} is still being written"
    files = files_of(path)
    if not files:
        return "no data file exists"
    return next((f"{file.name} {reason}" for file in files if (reason := _unfinished(file))), None)


def _unfinished(file: Path) -> str | None:
    size = file.stat().st_size
    if not size:
        return "is empty"
    with open(file, "rb") as opened:
        head = opened.read(8)
        opened.seek(max(0, size - _TAIL_BYTES))
        tail = opened.read()
    kind = file.suffix.lower()
    if kind == ".parquet":
        return None if head[:4] == tail[-4:] == b"PAR1" and size >= 12 else "does not end as Parquet does"
    if kind == ".arrow":
        # The file format ends with its magic, the stream format (of Hugging Face) with an end-of-stream mark.
        if head.startswith(b"ARROW1"):
            ends = tail[6:].endswith(b"ARROW1")
        else:
            ends = tail.endswith(b"\xff\xff\xff\xff\0\0\0\0")
        return None if ends else "does not end as Arrow does"
    if kind == ".csv":
        return None if tail.endswith((b"\n", b"\r")) else "does not end with a complete line"
    text = tail.rstrip()
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
