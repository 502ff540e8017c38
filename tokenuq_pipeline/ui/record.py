"""The record of a UI under way, in Dagster's home: the next one finds by it who serves, or what a kill has left."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_pipeline.runtime.owners import Owner
from tokenuq_pipeline.runtime.processes import is_running, process_stat
from tokenuq_pipeline.ui import sessions

FILE = "ui.json"
ENDS_WITHIN_S = sessions.ORDERLY_S + 10.0
"""Seconds in which a server whose supervisor was killed ends by itself."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Which processes serve a Dagster home, and where."""

    url: str
    supervisor: Owner
    """The command that a person started."""
    server: Owner
    """The leader of the session of all other processes."""


def write(home: Path, url: str, server: int) -> None:
    """Note the UI that this process supervises."""
    stat = process_stat(server)
    leader = dataclasses.replace(Owner.current(), pid=server, started=stat.start_ticks if stat else 0)
    with atomic_write(home / FILE) as file:
        file.write(json.dumps({"url": url, "supervisor": str(Owner.current()), "server": str(leader)}).encode())


def remove(home: Path) -> None:
    """Forget the UI: it has ended with all its processes."""
    with contextlib.suppress(OSError):
        (home / FILE).unlink(missing_ok=True)


def running(home: Path) -> Record | None:
    """Return the UI of a Dagster home if it is under way on this machine."""
    record = _read(home)
    return record if record is not None and record.supervisor.runs_here() else None


def end_orphans(home: Path, say: Callable[[str], None]) -> int:
    """End what is left of a UI whose supervisor was killed; return how many processes that were."""
    record = _read(home)
    if record is None or record.supervisor.runs_here():
        return 0
    session = record.server.pid
    if is_running(session) and not record.server.runs_here():
        # Another process has the id: no process of the old session lives, otherwise the kernel would not give it away.
        return 0
    found = len(sessions.members(session, [os.getpid()]))
    deadline = time.monotonic() + ENDS_WITHIN_S
    # It sees that its supervisor is gone, and ends with all others.
    while record.server.runs_here() and time.monotonic() < deadline:
        time.sleep(sessions.POLL_S)
    if sessions.members(session):
        sessions.interrupt(session)
        sessions.wait_or_kill(session, [], say)
    return found


def _read(home: Path) -> Record | None:
    """Return the record if it is of this machine and can be read; if it is damaged, nothing is known."""
    try:
        content = json.loads((home / FILE).read_text())
        supervisor, server = Owner.parse(content["supervisor"]), Owner.parse(content["server"])
        url = str(content["url"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if supervisor is None or server is None or not (supervisor.is_local and server.is_local):
        return None
    return Record(url, supervisor, server)
