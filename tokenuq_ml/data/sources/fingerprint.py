"""A user's data files as bytes: which a path names, whether they are whole, what identifies their content.

Does not know what rows mean (`datasets/`), nor who asks: the definitions load it, so it imports nothing heavy.
"""

import hashlib
import json
from pathlib import Path

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".csv")
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".incomplete", ".swp", "~")
"""Endings that programs give to files that they are still writing."""
_TAIL_BYTES = 1 << 16


def files_of(path: str | Path) -> list[Path]:
    """The data files that `path` names: itself, or those right inside the folder, by name; none where it is missing.

    In a folder other endings than SUFFIXES, hidden files and what bears a mark of being unfinished are not data.
    """
    path = Path(path)
    if path.is_dir():
        inside = (file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        return sorted(file for file in inside if file.suffix.lower() in SUFFIXES)
    return [path] if path.is_file() else []


def signature(path: str | Path) -> list[list]:
    """Name, bytes and time of change (ns) of each file: equal signatures, but for malice, mean equal content."""
    stats = [(file, file.stat()) for file in files_of(path)]
    return [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def fingerprint(path: str | Path) -> str | None:
    """Sixteen hex digits over the content of all files, in order; None where there is none.

    Of a single file its name does not count, so that a copy elsewhere is the same data.
    """
    files = files_of(path)
    if not files:
        return None
    digests = []
    for file in files:
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        # The name of a part decides its place among the rows.
        digests.append(f"{file.name}:{digest}" if Path(path).is_dir() else digest)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def problem(path: str | Path) -> str | None:
    """Why the data cannot be read yet: nothing there, empty, still being written; None where all end as they must.

    Of a large file only the end is read, so that a JSON list cut right after an inner list passes.
    """
    path = Path(path)
    writing = [file for file in path.iterdir() if file.name.endswith(UNFINISHED)] if path.is_dir() else []
    if writing:
        return f"{writing[0].name} is still being written"
    files = files_of(path)
    if not files:
        return "no file is there"
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
        # A file ends with its magic, a stream (as Hugging Face writes it) with an end-of-stream mark.
        if head.startswith(b"ARROW1"):
            ends = tail[6:].endswith(b"ARROW1")
        else:
            ends = tail.endswith(b"\xff\xff\xff\xff\0\0\0\0")
        return None if ends else "does not end as Arrow does"
    if kind == ".csv":
        return None if tail.endswith((b"\n", b"\r")) else "does not end with a whole line"
    text = tail.rstrip()
    if kind == ".json" and head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        whole = _is_json(text) if size <= _TAIL_BYTES else text.endswith(b"]")
        return None if whole else "does not end its list"
    return _unfinished_line(text, whole=size <= _TAIL_BYTES)


def _unfinished_line(text: bytes, whole: bool) -> str | None:
    """Of JSON, an object a line (or one object): whether the last line is whole."""
    line = text.rsplit(b"\n", 1)
    last = line[-1]
    if len(line) == 1 and not whole:
        # A line longer than what was read: its end is all that can be told.
        return None if last.endswith((b"}", b"]")) else "does not end with a whole line"
    # An object may be spread over lines, of which perhaps only the tail was read.
    if _is_json(last) or (_is_json(text) if whole else last.strip() == b"}"):
        return None
    return "does not end with a whole line"


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
