"""All processes of one UI: they share a session, which ends as a whole.

Sessions are the kernel's: a process cannot leave one by ending its parent, and nobody outside gets into it. Stages lead
sessions of their own, and the launcher that started one ends it. (`psutil` finds children, and loses them when their
parent has been killed.)
"""

import os
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tokenuq_pipeline.runtime.processes import is_running

ORDERLY_S = 6.0
"""Seconds that Dagster's servers have to end after an interrupt."""
CHECKPOINT_S = 45.0
"""Seconds that runs have: the launcher gives a stage 30 s to write its checkpoint."""
POLL_S = 0.05
RUN_WORKER = b"multiprocessing.spawn"
"""In the command line of the processes that execute runs: Dagster's code server starts them by `multiprocessing`."""
STEP = b"multiprocessing.forkserver"
"""In that of the processes of a run's steps, and of the one that they are forked from."""
ORPHAN_WATCH = b"watch_orphans"
"""In that of Dagster's helpers, which end with their parent and print a traceback if they are interrupted."""


def members(session: int, without: Collection[int] = ()) -> list[int]:
    """Return the running processes of a session."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) not in without:
            try:
                if os.getsid(int(entry.name)) == session and is_running(int(entry.name)):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def interrupt(session: int, without: Collection[int] = ()) -> None:
    """Send SIGINT to all processes of a session, as Ctrl-C does: runs stop, and their stages write checkpoints.

    A run of the multiprocess executor passes it on to its steps itself. They are left out, since a second interrupt
    kills a stage at once. A server that still imports its modules is ended by SIGTERM, at once and without the
    traceback that an interrupt would print.
    """
    pids = members(session, without)
    spared = (STEP, ORPHAN_WATCH)
    interrupted = [pid for pid in pids if not any(part in _command(pid) for part in spared)]
    starting = [pid for pid in interrupted if not is_run_worker(pid) and _is_starting(pid)]
    _send(signal.SIGTERM, starting)
    _send(signal.SIGINT, [pid for pid in interrupted if pid not in starting])


def wait_or_kill(session: int, without: Collection[int], say: Callable[[str], None]) -> None:
    """Wait until an interrupted session has ended; kill servers after `ORDERLY_S`, runs after `CHECKPOINT_S`."""
    started, told = time.monotonic(), False
    while left := members(session, without):
        waited = time.monotonic() - started
        workers = [pid for pid in left if is_run_worker(pid)]
        steps = [pid for pid in left if STEP in _command(pid)]
        if waited > CHECKPOINT_S:
            _send(signal.SIGKILL, left)
        elif waited > ORDERLY_S:
            _send(signal.SIGKILL, [pid for pid in left if pid not in workers and pid not in steps])
            if workers and not told:
                told = True
                say(f"waiting for {len(workers)} run{'s' if len(workers) > 1 else ''} to write checkpoints")
        time.sleep(POLL_S)


def is_run_worker(pid: int) -> bool:
    """Return whether a process executes a run."""
    return RUN_WORKER in _command(pid)


def _is_starting(pid: int) -> bool:
    """Return whether a Python process handles SIGINT only, as it does from its start; Dagster also handles SIGTERM."""
    return caught_signals(pid) & {signal.SIGINT, signal.SIGTERM} == {signal.SIGINT}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def caught_signals(pid: int) -> set[int]:
    """Return the signals that a process has handlers for; none if there is no such process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    except (OSError, StopIteration, ValueError):
        return set()
    return {number for number in signal.Signals if mask >> (number - 1) & 1}


def _send(number: int, pids: Collection[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            continue
