"""Owners of leases, staging folders and runs: which process on which machine, and whether it still works.

A pid says nothing on another machine or in another container. An owner is therefore judged by its pid only where host,
boot and PID namespace are those of this process. Every other owner is judged by its heartbeat: a file in the store
whose modification time it renews. Ages are differences of two times that the file system itself has set, so the clocks
of the machines do not matter.

psutil, which accelerate installs, knows pids and start times, but not the boot or the namespace that they belong to.
"""

import contextlib
import functools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenuq_ml.object_store.registry import bucket_mirror
from tokenuq_pipeline.runtime.bucket_heartbeats import bucket_heartbeat, delete_old_heartbeats, read_heartbeat
from tokenuq_pipeline.runtime.places import linked
from tokenuq_pipeline.runtime.processes import OTHER_PROC, boot_id, is_alive, pid_namespace, process_stat
from tokenuq_pipeline.runtime.seconds import seconds_of

EXPIRY_VARIABLE = "TOKENUQ_LEASE_SECONDS"
EXPIRY_S = 60.0
"""Seconds without heartbeat after which an owner on another machine or in another container counts as dead."""
BEATS_PER_EXPIRY = 6
FOLDER = ".owners"
"""Where the heartbeats are in the store: one file per process, named as its owner."""
KEPT_S = 7 * 24 * 3600.0
"""How long the heartbeat of a dead owner is kept: a run whose tag names it may still be open in Dagster."""

_TEXT = re.compile(r"(?P<pid>\d+)-(?P<started>\d+)(@(?P<boot>\w+)-(?P<namespace>\w+)-(?P<host>.+))?")


@dataclass(frozen=True)
class Owner:
    """A process. Its text, `<pid>-<start time>@<boot>-<PID namespace>-<host>`, is a tag and part of file names.

    Earlier versions wrote `<pid>-<start time>` only; such an owner is judged as if it ran on this machine.
    """

    pid: int
    started: int
    """Clock ticks from boot to the start of the process; 0 where the system does not say."""
    boot: str = ""
    namespace: str = ""
    host: str = ""

    def __str__(self) -> str:
        name = f"{self.pid}-{self.started}"
        return f"{name}@{self.boot}-{self.namespace}-{self.host}" if self.host else name

    @classmethod
    def current(cls) -> "Owner":
        """Return this process."""
        return _owner(os.getpid())

    @classmethod
    def parse(cls, text: str) -> "Owner | None":
        """Return the owner that a text names; None if it names none."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        parts = {name: match[name] or "" for name in ("boot", "namespace", "host")}
        return cls(int(match["pid"]), int(match["started"]), **parts)

    @property
    def described(self) -> str:
        """Return the process in words, for messages."""
        return f"process {self.pid} on {self.host}" if self.host else f"process {self.pid}"

    @property
    def is_local(self) -> bool:
        """Return whether its pid means the same here: same host, boot and PID namespace."""
        here = Owner.current()
        return not self.host or (
            (self.host, self.boot, self.namespace) == (here.host, here.boot, here.namespace)
            and not here.namespace.startswith(OTHER_PROC)
        )

    def is_alive(self, home: Path, age_s: float | None = None) -> bool:
        """Return whether the process still works.

        Args:
            home: the store that holds its heartbeat.
            age_s: age of what names the owner. Where an owner elsewhere has no heartbeat (yet), it counts as alive
                until this age exceeds the expiry. None: it counts as dead.
        """
        if self == Owner.current():
            return True
        beat = heartbeat_of(self, home)
        if self.is_local:
            return self.runs_here() and not (
                beat and beat.is_copied and beat.age_s > 2 * beat.expiry_s / BEATS_PER_EXPIRY
            )
        if beat is None:
            return age_s is not None and age_s <= expiry()
        return not beat.is_expired

    def runs_here(self) -> bool:
        """Return whether a process of this machine has this pid and start time."""
        return is_alive(f"{self.pid}-{self.started}")


@dataclass(frozen=True)
class HeartbeatRecord:
    """What the heartbeat of an owner says."""

    written_at: float
    age_s: float
    expiry_s: float
    is_copied: bool
    """The file is a copy of the one that the owner renews: the store was copied while the owner used the original."""

    @property
    def is_expired(self) -> bool:
        """Return whether the owner has not renewed it for too long."""
        return self.age_s > self.expiry_s


class Heartbeat:
    """Renews this process's heartbeat in one store, from a thread. Use `beating(home)`."""

    def __init__(self, home: Path, expiry_s: float):
        self.home, self.expiry_s, self.interval_s = home, expiry_s, expiry_s / BEATS_PER_EXPIRY
        self.path = home / FOLDER / str(Owner.current())
        self._listeners: list[Callable[[], None]] = []
        self._ended, self.users = threading.Event(), 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._create()
        self._in_bucket = bucket_heartbeat(home, self.path.name, expiry_s)
        threading.Thread(target=self._run, daemon=True, name="heartbeat").start()

    def now(self) -> float:
        """Return the time by the clock of the file system."""
        return self._mtime + time.monotonic() - self._at

    def beat(self) -> None:
        """Renew the heartbeat now, and call the listeners.

        Raises:
            OSError: the store cannot be written; no listener is called.
        """
        try:
            # Without a time: the file system's server sets it, by its own clock.
            os.utime(self.path)
            self._look()
        except FileNotFoundError:
            # Without the parents: a store that was deleted or moved stays so.
            self.path.parent.mkdir(exist_ok=True)
            self._create()
        if self._in_bucket is not None:
            self._in_bucket.beat()
        for listener in list(self._listeners):
            listener()

    @contextlib.contextmanager
    def told(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` after each beat, from the thread of the heartbeat, until the block ends."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def end(self) -> None:
        """Stop, and remove the file: this process owns nothing in the store any more."""
        self._ended.set()
        if self._in_bucket is not None:
            self._in_bucket.end()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _create(self) -> None:
        with open(self.path, "w") as file:
            status = os.fstat(file.fileno())
            file.write(json.dumps({"expiry_s": self.expiry_s, "file": [status.st_dev, status.st_ino]}))
        self._look()

    def _look(self) -> None:
        self._mtime, self._at = self.path.stat().st_mtime, time.monotonic()

    def _run(self) -> None:
        while not self._ended.wait(self.interval_s):
            # A full disk, or a file server that is away: the next beat tries again. Meanwhile the file grows older.
            with contextlib.suppress(OSError):
                self.beat()


_BEATING: dict[tuple[int, Path], Heartbeat] = {}
_BEATING_LOCK = threading.Lock()


@contextlib.contextmanager
def beating(home: Path) -> Iterator[Heartbeat]:
    """Keep this process's heartbeat in a store going until the block ends; blocks in several threads share one.

    Raises:
        InputError: `TOKENUQ_LEASE_SECONDS` is not a positive number.
        OSError: the store cannot be written.
    """
    key = os.getpid(), home
    with _BEATING_LOCK:
        beat = _BEATING.get(key)
        if beat is None:
            beat = _BEATING[key] = Heartbeat(home, expiry())
        beat.users += 1
    try:
        yield beat
    finally:
        with _BEATING_LOCK:
            beat.users -= 1
            if beat.users == 0:
                del _BEATING[key]
                beat.end()


def heartbeat_of(owner: Owner, home: Path) -> HeartbeatRecord | None:
    """Return what an owner's heartbeat in a store says; None if there is none."""
    if (mirror := bucket_mirror(home)) is not None:
        if (beat := read_heartbeat(mirror, str(owner))) is None:
            return None
        return HeartbeatRecord(beat.written_at, beat.age_s, _known(beat.content)[0], is_copied=False)
    try:
        # Opened, not only looked at: that makes NFS ask the server for the time.
        with open(home / FOLDER / str(owner), "rb") as file:
            status, content = os.fstat(file.fileno()), file.read()
    except OSError:
        return None
    here = [status.st_dev, status.st_ino]
    expiry_s, identity = _known(content)
    return HeartbeatRecord(
        written_at=status.st_mtime,
        age_s=file_time(home) - status.st_mtime,
        expiry_s=expiry_s,
        is_copied=owner.is_local and (identity or here) != here,
    )


def _known(content: bytes) -> tuple[float, list[int]]:
    """Return the expiry that a heartbeat names, and device and inode of its file; nothing if it cannot be read."""
    try:
        known = json.loads(content)
        return float(known["expiry_s"]), list(known["file"])
    except (ValueError, KeyError, TypeError):
        # Its owner is writing it now, or was killed while it did.
        return expiry(), []


def file_time(home: Path) -> float:
    """Return the time by the clock of the store's file system; by this machine's where the store cannot be written."""
    try:
        with beating(home) as beat:
            return beat.now()
    except OSError:
        return time.time()


def clean_heartbeats(home: Path) -> None:
    """Delete heartbeats that no owner has renewed for a week; other files, and what is behind a link, stay."""
    if (mirror := bucket_mirror(home)) is not None:
        delete_old_heartbeats(mirror, KEPT_S)
    now, own = file_time(home), linked(home, [FOLDER]) is None
    for path in (path for path in (home / FOLDER).glob("*") if own and Owner.parse(path.name)):
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > KEPT_S:
                path.unlink()


def expiry(environment: Mapping[str, str] = os.environ) -> float:
    """Return the seconds after which a silent owner counts as dead: `$TOKENUQ_LEASE_SECONDS`, by default 60.

    Raises:
        InputError: the variable is not a positive number.
    """
    return seconds_of(EXPIRY_VARIABLE, EXPIRY_S, environment)


@functools.cache
def _owner(pid: int) -> Owner:
    """Return this process; `pid` is its own, so that a forked process is another one."""
    stat = process_stat("self")
    host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())[:64] or "unknown"
    return Owner(pid, stat.start_ticks if stat else 0, boot_id(), pid_namespace(pid), host)
