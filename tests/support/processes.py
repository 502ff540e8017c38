"""Processes on this machine: all that run, waiting for a condition, a free port."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tokenuq_pipeline.runtime.processes import ProcessStat, process_stat


def all_processes() -> Iterator[tuple[int, ProcessStat, str]]:
    """Yield the pid, state and command line of every process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if (stat := process_stat(int(folder.name))) is not None:
            yield int(folder.name), stat, command.replace("\0", " ")


def wait_until(condition, seconds: float = 90):
    """Return what `condition` returns as soon as it is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.05)
    return found


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
