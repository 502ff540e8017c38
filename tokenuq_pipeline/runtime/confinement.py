"""Limits that a process puts on itself before it runs what it does not trust. None can be lifted again.

Each is the kernel's, so that it holds whatever the process then does. Landlock (Linux 5.13) is used through its three
system calls: the packages for it on PyPI are young, and each wraps the same calls. Where the kernel or a container
refuses Landlock, the process goes on without; memory, time and the end with the parent hold everywhere.
"""

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _REFER, _TRUNCATE = 1 << 0, 1 << 1, 1 << 13, 1 << 14
_MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 13))
_BIND_AND_CONNECT_TCP = 0b11
_SIGNALS_AND_ABSTRACT_SOCKETS = 0b11


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent ends; end now if it already has.

    Args:
        parent: the parent's pid, as the parent told it.
    """
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def limit_time(seconds: float) -> None:
    """Let the kernel end this process by SIGALRM after `seconds` of time; 0 for never.

    A timer in Python would wait for the interpreter's lock, and DuckDB's own interruption for the end of a function.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def pause_time() -> float:
    """Stop the clock of `limit_time` and return what is left, for another call of it."""
    return signal.setitimer(signal.ITIMER_REAL, 0)[0]


def limit_memory(more: int) -> None:
    """Let the kernel refuse this process more than `more` bytes of private memory in addition to what it has now.

    By RLIMIT_DATA, which counts writable private memory. RLIMIT_AS also counts libraries and address space that is only
    reserved (importing duckdb, pyarrow and polars maps 770 MiB and uses 100), and a control group needs privileges.
    """
    status = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = now + more if hard == resource.RLIM_INFINITY else min(hard, now + more)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def no_core_dumps() -> None:
    """Let a crash leave no file of this process's memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def write_only_in(folders: Iterable[Path]) -> bool:
    """Let the kernel refuse this process to alter files elsewhere, to start programs, to use TCP and to signal others.

    Files that are open already stay writable. Holds for threads that are started afterwards, so this comes first.

    Returns:
        Whether the kernel offers it (Landlock).
    """
    libc = _libc()
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    if version < 1:
        return False
    writing = _WRITE_FILE | _MAKE_AND_REMOVE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    handled = struct.pack(
        "=QQQ",
        writing | _EXECUTE,
        _BIND_AND_CONNECT_TCP if version >= 4 else 0,
        _SIGNALS_AND_ABSTRACT_SOCKETS if version >= 6 else 0,
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(size), ctypes.c_uint32(0))
    if rules < 0:
        return False
    try:
        allowed = [(Path(os.devnull), writing & (_WRITE_FILE | _TRUNCATE)), *((folder, writing) for folder in folders)]
        for path, access in allowed:
            if not _allow(libc, rules, path, access):
                return False
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        return libc.syscall(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0)) == 0
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: Path, access: int) -> bool:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        # What does not exist is not written to.
        return True
    try:
        rule = struct.pack("=Qi", access, place)
        return libc.syscall(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0)) == 0
    finally:
        os.close(place)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc
