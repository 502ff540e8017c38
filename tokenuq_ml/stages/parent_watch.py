"""Ends a stage whose parent has died, or has been silent for so long that another process may work on its assets.

The parent holds one end of a pipe, and writes a byte at each heartbeat for which it still has the lease of the assets
(`tokenuq_pipeline/runtime/leases.py`). The child needs no access to the leases, and no clock but its own:

- the pipe ends: the parent has died. The stage is interrupted, as by Ctrl-C: a training writes a checkpoint.
- no byte for half of the lease's time: the parent is suspended, or has lost the lease. The same, and the process is
  killed when the lease's time is over, so that it does not write into a folder that another training uses by then.
- no byte for the lease's whole time, because this process was suspended too: it is killed at once.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time

PARENT_PIPE = "TOKENUQ_PARENT_PIPE"
"""Environment variable: the file descriptor of a pipe whose other end only the parent process holds."""
LEASE_SECONDS = "TOKENUQ_PARENT_LEASE_SECONDS"
"""Environment variable: the time after which another process may take the lease of a silent parent."""
ORPHAN_GRACE_S = 30.0
"""Seconds that a process without parent has to write its checkpoint."""


class ParentWatch:
    """Watches the parent from a thread.

    Attributes:
        orphaned: the parent has ended.
        silent: the parent has not answered for too long.
    """

    def __init__(self, descriptor: int | None, lease_s: float | None = None):
        self.orphaned, self.silent = threading.Event(), threading.Event()
        self._descriptor, self._lease_s = descriptor, lease_s
        if descriptor is not None:
            threading.Thread(target=self._watch, daemon=True, name="parent-watch").start()

    @classmethod
    def start(cls) -> "ParentWatch":
        """Watch the parent that the environment names; without one, watch nothing."""
        pipe, lease = os.environ.get(PARENT_PIPE), os.environ.get(LEASE_SECONDS)
        return cls(int(pipe) if pipe else None, float(lease) if lease else None)

    def _watch(self) -> None:
        limit = self._lease_s / 2 if self._lease_s else None
        last = time.monotonic()
        while True:
            if select.select([self._descriptor], [], [], limit and max(0.0, last + limit - time.monotonic()))[0]:
                if not os.read(self._descriptor, 4096):
                    self._end(self.orphaned, min(ORPHAN_GRACE_S, limit or ORPHAN_GRACE_S))
                last = time.monotonic()
            elif limit and time.monotonic() - last >= limit:
                self._end(self.silent, last + 2 * limit - time.monotonic())

    def _end(self, reason: threading.Event, grace_s: float) -> None:
        reason.set()
        if grace_s > 0:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(grace_s)
        kill_group()
        os._exit(1)


def die_with_parent() -> None:
    """Have the system kill this process as soon as its parent has died.

    For the processes that torchrun starts: each has a session of its own, and inherits no pipe, so that whoever kills
    torchrun's process group does not reach them.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        with contextlib.suppress(OSError):
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="torchrun-watch").start()


def kill_group() -> None:
    """Kill this process and its children, if it leads its process group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
