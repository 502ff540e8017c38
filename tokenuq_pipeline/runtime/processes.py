"""Names of processes that stay unique when a pid is reused, and whether such a process is alive."""

import os
from pathlib import Path


def process_name(pid: int | None = None) -> str:
    """`<pid>-<start time>`: names a process for good, where a pid alone comes round again."""
    pid = pid or os.getpid()
    return f"{pid}-{_start_time(pid) or 0}"


def is_alive(name: str) -> bool:
    """Whether the process of this `process_name` still runs."""
    pid, _, started = name.partition("-")
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # Dead but not buried: in a container the first process may never ask for its orphans' exit codes.
    unburied = _stat(int(pid))[:1] == ["Z"]
    return not unburied and started in ("0", str(_start_time(int(pid)) or 0))


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of the process; None where there is no /proc."""
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else None


def _stat(pid: int) -> list[str]:
    """The fields of the process's state from the third on; empty where they are not told."""
    try:
        # The second field is the program's name in brackets, which may hold spaces and brackets itself.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
