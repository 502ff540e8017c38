"""SHA-256 of files. Each file is read at most once per process, and by queries at most once per user.

A hash is kept under the file's identity: device, inode, size, and times of modification and change. The time of change
cannot be set by a program, so a file that was written to is read again, whatever its size and its other times are.
A byte that flips on the disk itself changes none of these; readings that must find it use a new process.

Hash databases for this exist as programs (AIDE, Tripwire, `git`'s index), not as a small library with such keys;
`joblib` and `diskcache` hash arguments, not files. Does not import the rest of the package but `atomic_files`.
"""

import contextlib
import hashlib
import json
import os
import stat
import threading
import time
from io import BufferedReader
from pathlib import Path

from tokenuq_ml.atomic_files import atomic_write

_RECENT_S = 0.05
"""A file that has changed less than this before it is read may change again without another time of change: clocks of
file systems tick every 4 to 10 ms. Its hash is not kept."""
_RECENT_ACROSS_PROCESSES_S = 2.0
"""The same for hashes that are kept on disk, for file systems whose clocks tick once per second."""
_MAX_KEPT = 50_000
_TRIES = 3

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}

Identity = tuple[int, int, int, int, int]
"""Device, inode, size, time of modification, time of change (nanoseconds)."""

_known: dict[Identity, str] = {}
_reading = threading.Lock()


class NotAFile(OSError):
    """A path that holds something else than a regular file; the message says what."""


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        NotAFile: it is a folder, a symbolic link, a FIFO, a socket or a device.
        OSError: there is no such file, or it cannot be read.
    """
    # Looked at first: opening a device may have effects. The open file is looked at again below.
    _require_regular(os.lstat(path), path)
    # Without O_NONBLOCK, a FIFO that took the file's place meanwhile would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a regular file, in hexadecimal.

    Raises:
        NotAFile: the path holds something else.
        OSError: the file cannot be read, or changes while it is read.
    """
    return _sha256_of(path)[0]


def identity(status: os.stat_result) -> Identity:
    """Return what a file's hash is kept under."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class KeptHashes:
    """Hashes that outlive the process, for programs that look at the same files again and again.

    A file of hashes that is missing, damaged or cannot be written is as good as an empty one.

    Args:
        path: where they are kept; default: `tokenuq/file_hashes.json` in the user's cache folder.
    """

    def __init__(self, path: str | Path | None = None):
        self._path = Path(path) if path is not None else cache_folder() / "file_hashes.json"
        self._known: dict[str, str] | None = None
        self._changed = False

    def sha256_of(self, path: str | Path) -> str:
        """Return the SHA-256 of a regular file; it is read only if it has changed since its hash was kept.

        Raises:
            OSError: as `sha256_of`.
        """
        if self._known is None:
            self._known = self._read()
        status = os.lstat(path)
        _require_regular(status, path)
        key = ":".join(map(str, identity(status)))
        if key not in self._known:
            digest, key, changed_before = _sha256_of(path)
            if changed_before < _RECENT_ACROSS_PROCESSES_S:
                return digest
            self._known[key] = digest
            self._changed = True
        return self._known[key]

    def save(self) -> None:
        """Write new hashes to the disk."""
        if not self._changed or self._known is None:
            return
        # Another process may have added hashes meanwhile.
        kept = list({**self._read(), **self._known}.items())[-_MAX_KEPT:]
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_write(self._path, durable=False) as file:
                file.write(json.dumps(dict(kept)).encode())
        self._changed = False

    def _read(self) -> dict[str, str]:
        try:
            with open_regular(self._path) as file:
                found = json.loads(file.read())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: value for key, value in found.items() if isinstance(value, str)}


def _sha256_of(path: str | Path) -> tuple[str, str, float]:
    """Return a file's SHA-256, its identity as text, and how long before now it changed, in seconds."""
    for _ in range(_TRIES):
        with open_regular(path) as file:
            before = os.fstat(file.fileno())
            changed_before = abs(time.time() - before.st_ctime)
            digest = _known.get(identity(before))
            if digest is None:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if identity(os.fstat(file.fileno())) != identity(before):
                    continue
                if changed_before > _RECENT_S:
                    with _reading:
                        _known[identity(before)] = digest
            return digest, ":".join(map(str, identity(before))), changed_before
    raise OSError(f"{path} changes while it is read")


def _require_regular(status: os.stat_result, path: str | Path) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise NotAFile(f"{path} is {_KINDS.get(kind, 'no file')}, not a file")


def cache_folder() -> Path:
    """Return the user's folder for what can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokenuq"
