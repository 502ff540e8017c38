"""Processes of this machine: whether one is alive, and names that stay unique when a pid is used again.

Reads `/proc` where there is one (Linux), and knows less elsewhere.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

ZOMBIE = "Z"
OTHER_PROC = "x"


@dataclass(frozen=True)
class ProcessStat:
    """What `/proc/<pid>/stat` says of a process."""

    state: str
    """One letter. `Z`: it has ended, and its parent has not asked for its exit code."""
    parent: int
    start_ticks: int
    """Clock ticks from boot to the start of the process."""


def process_stat(pid: int | str) -> ProcessStat | None:
    """Return the state of a process, or of this one (`self`); None if there is none, or `/proc` does not show it."""
    try:
        # The second field is the program's name in brackets, which may hold spaces and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return ProcessStat(fields[0], int(fields[1]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


def process_name(pid: int | None = None) -> str:
    """Return `<pid>-<start time>`, which no later process with the same pid has. Default: this process."""
    pid = pid or os.getpid()
    stat = process_stat(pid)
    return f"{pid}-{stat.start_ticks if stat else 0}"


def is_alive(name: str) -> bool:
    """Return whether the process with this `process_name` runs."""
    pid, _, started = name.partition("-")
    if not pid.isdigit() or not is_running(int(pid)):
        return False
    # A process of another user may be hidden (`/proc` mounted with hidepid): that it runs is all that is known then.
    stat = process_stat(int(pid))
    return stat is None or started in ("0", str(stat.start_ticks))


def is_running(pid: int) -> bool:
    """Return whether a process with this pid runs.

    A zombie does not: in a container, the first process may never ask for the exit codes of orphans.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    stat = process_stat(pid)
    return stat is None or stat.state != ZOMBIE


def started_at(pid: int) -> float | None:
    """Return when a running process started, in seconds since the epoch; None if the system does not say."""
    stat = process_stat(pid)
    if stat is None:
        return None
    try:
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, StopIteration):
        return None
    return int(boot.split()[1]) + stat.start_ticks / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int | None:
    """Return the bytes of memory that a running process and its children have had at most; None if it is not known.

    The children of a stage in several processes do its work. The sum is of the most that each has had, whenever.
    """
    own = _own_peak(pid)
    return None if own is None else own + sum(_own_peak(child) or 0 for child in _children(pid))


def _own_peak(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _children(pid: int) -> list[int]:
    try:
        texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in texts for child in text.split()]


def boot_id() -> str:
    """Return the id that the system has drawn at boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:16]
    except OSError:
        return "none"


def pid_namespace(pid: int) -> str:
    """Return the inode of the PID namespace of this process, whose pid is given.

    `OTHER_PROC` comes first where `/proc` shows another namespace (`unshare --pid` without `--mount-proc`): its pids
    are not those of this process, so that no owner is judged by them.
    """
    try:
        inode = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
        return inode if os.readlink("/proc/self") == str(pid) else f"{OTHER_PROC}{inode}"
    except OSError:
        return "none"
