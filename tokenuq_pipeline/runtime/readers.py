"""Standard output whose reader is gone (`tokenuq run | head -3`), or whose disk is full."""

import errno
import os
import select
import sys
from pathlib import Path


def is_gone(descriptor: int) -> bool:
    """Return whether what is written to a descriptor has no reader any more: a pipe or socket, closed at its end."""
    poll = select.poll()
    try:
        poll.register(descriptor, 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (OSError, ValueError):
        return False


def replace_output() -> None:
    """Let standard output be standard error from now on; if that has no reader either, nothing is printed."""
    if not is_gone(2):
        os.dup2(2, 1)
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(sink, descriptor)
    os.close(sink)


def file_of_output() -> Path | None:
    """Return the file or device that standard output is written to; None: a terminal, a pipe, or not known."""
    try:
        path = Path(f"/proc/self/fd/{sys.stdout.fileno()}").readlink()
        return path if path.is_absolute() and not sys.stdout.isatty() and str(path) != os.devnull else None
    except (OSError, ValueError):
        return None


def why_lost(error: OSError) -> str:
    """Return why standard output cannot be written."""
    if error.errno == errno.EPIPE:
        return "the reader of standard output is gone"
    return f"standard output cannot be written ({error.strerror})"
