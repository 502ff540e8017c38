"""End a run with the `dagster dev` that serves it.

`dagster dev` tells its code servers to end and exits; they wait for their runs, for hours, with nobody to cancel these.
`tokenuq ui` ends its runs itself. Other deployments (a web server, a daemon and code servers of their own) are left as
Dagster intends: their runs go on.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tokenuq_ml.background import looking
from tokenuq_pipeline.runtime.processes import is_alive, process_name, process_stat

LOOK_S = 1.0
ANCESTORS = 8
"""Run, code server, its proxy, and then `dagster dev`; a container may add some."""


@contextlib.contextmanager
def ending_with_dev() -> Iterator[None]:
    """Interrupt this process, as Ctrl-C does, if the `dagster dev` above it ends before the block does."""
    server = _dev_above(os.getpid())
    if server is None:
        yield
        return
    name = process_name(server)

    def look() -> bool:
        if is_alive(name):
            return False
        os.kill(os.getpid(), signal.SIGINT)
        return True

    with looking(look, LOOK_S, "dev-server-watch"):
        yield


def _dev_above(pid: int) -> int | None:
    """Return the ancestor of a process that is `dagster dev`; None if there is none."""
    for _ in range(ANCESTORS):
        stat = process_stat(pid)
        if stat is None or stat.parent <= 1:
            return None
        pid = stat.parent
        if is_dev(_arguments(pid)):
            return pid
    return None


def is_dev(arguments: list[str]) -> bool:
    """Return whether a command line is `dagster dev`, by its script or by `python -m`."""
    return any(Path(first).name == "dagster" and second == "dev" for first, second in pairwise(arguments))


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
