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


@contextlib.contextmanager
def lock_folder(folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """Lock a folder for this process, and wait while another process holds the lock.

    A child that is started with the descriptor holds the lock too, so it lasts as long as either process lives: two
    trainings never write to one checkpoint folder, even if the parent of the first was killed.

    Args:
        folder: created if it is missing. The lock is the file `.lock` in it.
        say: called with one sentence before waiting.

    Yields:
        The file descriptor of the lock, to be passed to a child. Where the file system has no locks it locks nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder / ".lock") as descriptor:
        if not _lock(descriptor):
            say("waiting for another run of this stage to end")
            while not _lock(descriptor):
                time.sleep(POLL_S)
        yield descriptor


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock on a folder. A lock that cannot be asked counts as held."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
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


def store_lock(home: Path) -> contextlib.AbstractContextManager[None]:
    """Lock a store for the moment in which something is published, deleted or taken over. Not re-entrant."""
    return lock_file(home / ".leases" / ".lock")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    # Writable for all whom the umask lets: a second user of the store locks the same file.
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    return True
