"""A lock on a folder that a child process inherits."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_S = 0.5


@contextlib.contextmanager
def lock_folder(folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """Lock a folder for this process, and wait while another process holds the lock.

    A child that is started with the descriptor holds the lock too, so it lasts as long as either process lives: two
    trainings never write to one checkpoint folder, even if the parent of the first was killed.

    Args:
        folder: created if it is missing. The lock is the file `.lock` in it.
        say: called with one sentence before waiting.

    Yields:
        The file descriptor of the lock, to be passed to a child.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        if not _lock(descriptor):
            say("waiting for another run of this stage to end")
            while not _lock(descriptor):
                time.sleep(POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
