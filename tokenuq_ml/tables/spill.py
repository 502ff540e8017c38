"""The folder that a query's data spills into when it exceeds the memory limit.

It is removed when the query ends. What a killed process left is removed by the next query of the same user: a folder
is in use while somebody holds the lock on it, and the kernel releases that however its holders end. (A
`TemporaryDirectory` alone stays after SIGKILL, SIGTERM and SIGHUP.) Other users' folders are left alone; several may
share `/tmp`.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

PREFIX = "tokenuq-query-"
LARGEST = 20 * 2**30
"""Most bytes that one query spills."""
_SHARE_OF_FREE = 0.5


class SpillFolder:
    """A folder to spill into.

    Attributes:
        path: the folder; None if none can be made, as on a full disk: the query then has its memory only.
        descriptor: holds the lock, for this process and for children that inherit it; -1 if another process holds it.
    """

    def __init__(self, path: Path | None, descriptor: int = -1):
        self.path, self.descriptor = path, descriptor

    @classmethod
    def create(cls) -> Self:
        """Return a new folder that only this user can read; first remove what killed processes left."""
        sweep()
        try:
            return cls(*_locked_folder())
        except OSError:
            return cls(None)

    def limit(self) -> int:
        """Return the most bytes to write here: `LARGEST`, or half of what is free."""
        if self.path is None:
            return 0
        return min(LARGEST, int(_SHARE_OF_FREE * shutil.disk_usage(self.path).free))

    def remove(self) -> None:
        """Remove the folder and what it holds."""
        if self.path is not None and self.descriptor >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self.descriptor)
            self.path, self.descriptor = None, -1


@contextlib.contextmanager
def spill_folder() -> Iterator[SpillFolder]:
    """Make a folder for the block."""
    folder = SpillFolder.create()
    try:
        yield folder
    finally:
        folder.remove()


def sweep() -> None:
    """Remove the spill folders that this user's killed processes left."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if entry.name.startswith(PREFIX):
                with contextlib.suppress(OSError):
                    _remove_unused(Path(entry.path))


def _locked_folder() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Another process that starts now may have found the folder before its lock, and be about to remove it.
        if _lock(descriptor) and _is_at(descriptor, path):
            return path, descriptor
        os.close(descriptor)


def _remove_unused(path: Path) -> None:
    # Not through a link, and only what is ours: the temporary folder is everybody's.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat()) and stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
