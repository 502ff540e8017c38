"""Standard output whose reader is gone (`tokenuq run | head -3`), or whose disk is full."""

import errno
import os
import select
import sys
from pathlib import Path

READER_LEFT = "the reader of standard output is gone: what it would have read follows here"


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
    drop_output(1, 2)


def drop_output(*descriptors: int) -> None:
    """Let what is written to the descriptors, by default to standard output, go nowhere from now on."""
    sink = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors or (1,):
        os.dup2(sink, descriptor)
    os.close(sink)


def print_on(text: str) -> None:
    """Print a result; if the reader of standard output is gone, on standard error, where what follows goes too.

    For a command whose exit code says what it has done, read or not.
    """
    for line in text.split("\n"):
        try:
            print(line, flush=True)
        except BrokenPipeError:
            drop_output()
            # The line is in the buffer, or not if there is none (PYTHONUNBUFFERED).
            sys.stdout.flush()
            replace_output()
            print(READER_LEFT, file=sys.stderr, flush=True)
            print(line, flush=True)


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
