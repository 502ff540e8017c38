"""Locks by `flock`: on a folder, inherited by a child process, and on the store while something is published.

They help where the file system has them, and nothing depends on them: who may publish is decided by leases.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_S, SHORT_POLL_S = 0.5, 0.02
NOT_SUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class FolderLock:
    """A lock on a folder.

    Attributes:
        descriptor: to be passed to a child.
    """

    def __init__(self, descriptor: int):
        self.descriptor, self._open = descriptor, True

    def leave_to_child(self) -> None:
        """Let go of the lock, which a child started with the descriptor keeps. Does nothing the second time."""
        if self._open:
            self._open = False
            os.close(self.descriptor)


@contextlib.contextmanager
def lock_folder(folder: Path, say: Callable[[str], None]) -> Iterator[FolderLock]:
    """Lock a folder for a child of this process, and wait while another process holds the lock.

    The child is started with the descriptor and keeps the lock as long as it lives: two trainings never write to one
    checkpoint folder, even if the parent of the first was killed. The parent has to let go once the child runs.
    Otherwise a parent that is suspended would keep the folder from the run that has taken its lease.

    Args:
        folder: created if it is missing. The lock is the file `.lock` in it.
        say: called with one sentence before waiting.

    Yields:
        The lock. Where the file system has no locks it locks nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(_open(folder / ".lock"))
    try:
        if not _lock(lock.descriptor):
            say("waiting for another run of this stage to end")
            while not _lock(lock.descriptor):
                time.sleep(POLL_S)
        yield lock
    finally:
        lock.leave_to_child()


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock on a folder. A lock that cannot be asked counts as held."""
    path, flags = folder / ".lock", os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | flags)
        except PermissionError:
            # Another user's. Only some network file systems need the right to write for a lock.
            descriptor = os.open(path, os.O_RDONLY | flags)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        # On a read-only file system no run works.
        return error.errno != errno.EROFS
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Lock a file for the block, and wait while another process or thread does. Children do not inherit the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(path) as descriptor:
        while not _lock(descriptor):
            time.sleep(SHORT_POLL_S)
        yield


def try_lock(path: Path) -> int | None:
    """Lock a file, whose folder exists; return the descriptor that holds the lock, or None if another one does.

    A child that is started with the descriptor holds the lock too.
    """
    descriptor = _open(path)
    if _lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def store_lock(home: Path) -> contextlib.AbstractContextManager[None]:
    """Lock a store for the moment in which something is published, deleted or taken over. Not re-entrant."""
    return lock_file(home / ".leases" / ".lock")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = _open(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    # Writable for all whom the umask lets: a second user of the store locks the same file.
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    return True
