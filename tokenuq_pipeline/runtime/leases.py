"""Leases: one process at a time makes an asset, on however many machines the store is mounted.

A lease is a file `.leases/<asset>/<number>.lease`. Taking it is creating the file of the next number, which every file
system refuses if the file exists; the highest number is the current lease. Its holder renews a heartbeat (`owners.py`).
Another process takes the next number once the holder has released its own, is dead, or has been silent for longer than
`TOKENUQ_LEASE_SECONDS`. `Lease.require`, called before anything is published, takes the next number too: it fails if
another process has it, so who lost the lease publishes nothing (fencing).

Nothing here relies on `flock`, which network file systems lack or imitate. Where it works, `store_lock` also closes the
moment between `require` and the rename that follows: a holder that is suspended exactly there keeps others waiting.
Where it does not, such a holder can put an older folder in place after its wake-up; the hashes in the manifest tell.

filelock and portalocker lock by `flock` or by a file without expiry. Dagster's pools count steps within one Dagster
instance; a store may serve several.
"""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenuq_pipeline.runtime.folder_lock import store_lock
from tokenuq_pipeline.runtime.owners import BEATS_PER_EXPIRY, Heartbeat, Owner, beating, expiry, file_time, heartbeat_of
from tokenuq_pipeline.runtime.processes import is_alive

FOLDER, SUFFIX = ".leases", ".lease"
POLL_S = 0.5
_HELD: set[str] = set()
"""Tokens of the leases that this process holds."""
KEPT_S = 3600.0
"""How long files of earlier numbers stay. A machine that sees changes late must not create one of them again."""


class LeaseLost(Exception):
    """Another process has taken the lease."""


@dataclass(frozen=True)
class LeaseRecord:
    """One lease file."""

    number: int
    age_s: float
    """Since it was written."""
    owner: Owner | None
    """None: the file cannot be read; its writer may have been killed."""
    token: str = ""
    makes: tuple[str, ...] = ()
    """The assets that are made under this lease."""
    child: str = ""
    """`process_name` of the child that works for the owner; it may outlive its parent, to write a checkpoint."""
    released: bool = False

    def content(self) -> bytes:
        """Return what the file holds."""
        fields = {"owner": str(self.owner), "token": self.token, "makes": self.makes, "child": self.child}
        return json.dumps({**fields, "released": self.released}).encode()


class Lease:
    """A lease that this process holds.

    Attributes:
        asset: the asset whose checkpoint folder it protects.
        number: of the lease file; grows with each `require`.
        lost: another process has taken the lease, as seen at the last heartbeat.
    """

    def __init__(self, leases: "Leases", asset: str, record: LeaseRecord, beat: Heartbeat):
        self._leases, self.asset, self._record, self._beat = leases, asset, record, beat
        self.lost = False

    @property
    def number(self) -> int:
        """Return the number that decides who may publish."""
        return self._record.number

    @property
    def expiry_s(self) -> float:
        """Return the seconds of silence after which another process may take it."""
        return self._beat.expiry_s

    def require(self) -> None:
        """Take the next number, which proves that nobody else has.

        Raises:
            LeaseLost: another process has taken the lease; the message names it.
        """
        following = replace(self._record, number=self.number + 1)
        if self.lost or not self._leases.create(self.asset, following):
            self.lost = True
            raise LeaseLost(self.loss)
        self._record = following

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """Hold the store's lock, with the lease confirmed: only what is published within the block is from its holder.

        Raises:
            LeaseLost: another process has taken the lease.
        """
        with store_lock(self._leases.home):
            self.require()
            yield

    @property
    def loss(self) -> str:
        """Return the sentence for a lease that was lost."""
        latest = self._leases.latest(self.asset)
        other = latest.owner.described if latest and latest.owner else "another process"
        return (
            f"{self.asset}: {other} has taken over, because this run had not answered for {self.expiry_s:.0f} s; "
            "what this run made is not published"
        )

    def note_child(self, name: str) -> None:
        """Record the process that works under the lease."""
        self._rewrite(child=name)

    @contextlib.contextmanager
    def confirmed_to(self, descriptor: int) -> Iterator[None]:
        """Write a byte to a pipe at each heartbeat for which the lease is still held, until the block ends."""

        def tell() -> None:
            if not self.lost:
                with contextlib.suppress(OSError):
                    os.write(descriptor, b".")

        with self._beat.told(tell):
            yield

    def look(self) -> None:
        """Note whether the lease has been lost. Called at each heartbeat."""
        latest = self._leases.latest(self.asset)
        # `require` may be taking a number right now, in the other thread.
        if (
            latest is None
            or latest.number > self.number + 1
            or (latest.owner, latest.released) != (Owner.current(), False)
        ):
            self.lost = True

    def release(self) -> None:
        """Let others take it."""
        if not self.lost:
            self._rewrite(released=True, child="")

    def _rewrite(self, **changes: Any) -> None:
        self._record = replace(self._record, **changes)
        with contextlib.suppress(FileNotFoundError):
            self._leases.rewrite(self.asset, self._record)


class Leases:
    """The leases of a store."""

    def __init__(self, home: Path):
        self.home = home

    def holder(self, asset: str) -> Owner | None:
        """Return the process that makes `asset` now, or whose child still writes its checkpoint; None if none does."""
        for folder in {self._folder(asset), *(path.parent for path in (self.home / FOLDER).rglob(f"*{SUFFIX}"))}:
            record = self.latest(folder.relative_to(self.home / FOLDER).as_posix())
            if record is None or record.released or record.owner is None:
                continue
            own = folder == self._folder(asset)
            if (own or asset in record.makes) and not self._is_free(record):
                return record.owner
        return None

    @contextlib.contextmanager
    def hold(self, asset: str, say: Callable[[str], None], makes: Collection[str] = ()) -> Iterator[Lease]:
        """Take the lease of an asset, and wait while another process holds it.

        Args:
            asset: the asset that names the checkpoint folder.
            say: called with one sentence before waiting.
            makes: the assets that are made under the lease; by default `asset`.

        Raises:
            OSError: the store cannot be written.
        """
        with beating(self.home) as beat:
            mine = LeaseRecord(0, 0.0, Owner.current(), secrets.token_hex(8), tuple(makes) or (asset,))
            _HELD.add(mine.token)
            try:
                lease = Lease(self, asset, self._take(asset, say, mine), beat)
                try:
                    with beat.told(lease.look):
                        yield lease
                finally:
                    lease.release()
            finally:
                _HELD.discard(mine.token)

    def latest(self, asset: str) -> LeaseRecord | None:
        """Return the current lease of an asset, also one that was released; None if there was none."""
        numbers = self._numbers(asset)
        number = max(numbers, default=0)
        # A machine may see a file before the folder's listing shows it.
        while (self._path(asset, number + 1)).exists():
            number += 1
        return self._read(asset, number) if number else None

    def create(self, asset: str, record: LeaseRecord) -> bool:
        """Create the file of a number; return False if another process has it, or a higher one."""
        path = self._path(asset, record.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{record.token}")
        temporary.write_bytes(record.content())
        try:
            if not self._link(temporary, path, asset, record):
                return False
        finally:
            temporary.unlink(missing_ok=True)
        if max(self._numbers(asset), default=0) > record.number:
            path.unlink(missing_ok=True)
            return False
        self._forget_earlier(asset, record.number)
        return True

    def rewrite(self, asset: str, record: LeaseRecord) -> None:
        """Replace the content of an existing lease file."""
        path = self._path(asset, record.number)
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        temporary.write_bytes(record.content())
        if path.exists():
            os.replace(temporary, path)
        else:
            temporary.unlink()

    def _take(self, asset: str, say: Callable[[str], None], mine: LeaseRecord) -> LeaseRecord:
        told, seen = False, _Seen()
        while True:
            latest = self.latest(asset)
            if latest is None or self._is_free(latest, seen):
                mine = replace(mine, number=latest.number + 1 if latest else 1)
                with store_lock(self.home):
                    if self.create(asset, mine):
                        return mine
                continue
            if not told:
                say(_waiting(asset, latest))
                told = True
            time.sleep(POLL_S)

    def _is_free(self, record: LeaseRecord, seen: "_Seen | None" = None) -> bool:
        """Return whether a lease may be taken.

        Args:
            record: the current lease.
            seen: for who wants to take it. Silence has then to last for one more heartbeat while this process looks:
                if the whole machine was suspended, every heartbeat is old at the wake-up, and the holder's next is due.
        """
        if record.released:
            return True
        owner = record.owner
        if owner is None:
            return record.age_s > expiry()
        if owner.is_local and not owner.runs_here():
            return not (record.child and is_alive(record.child))
        if owner == Owner.current():
            # An interrupt may have come between the file and the block that releases it.
            return seen is not None and record.token not in _HELD
        beat = heartbeat_of(owner, self.home)
        silent = not owner.is_alive(self.home, record.age_s) or (beat is not None and beat.is_expired)
        if seen is None or not silent:
            return silent
        return seen.lasts(f"{record.number} {beat.written_at if beat else 0}", beat.expiry_s if beat else expiry())

    def _folder(self, asset: str) -> Path:
        return self.home / FOLDER / asset

    def _path(self, asset: str, number: int) -> Path:
        return self._folder(asset) / f"{number:08d}{SUFFIX}"

    def _numbers(self, asset: str) -> list[int]:
        names = (path.stem for path in self._folder(asset).glob(f"*{SUFFIX}"))
        return [int(name) for name in names if name.isdigit()]

    def _read(self, asset: str, number: int) -> LeaseRecord:
        try:
            with open(self._path(asset, number), "rb") as file:
                age = file_time(self.home) - os.fstat(file.fileno()).st_mtime
                content = file.read()
        except OSError:
            return LeaseRecord(number, 0.0, None)
        try:
            known = json.loads(content)
            owner, makes = Owner.parse(known["owner"]), tuple(map(str, known["makes"]))
            return LeaseRecord(number, age, owner, known["token"], makes, known["child"], known["released"] is True)
        except (ValueError, KeyError, TypeError):
            return LeaseRecord(number, age, None)

    def _link(self, temporary: Path, path: Path, asset: str, record: LeaseRecord) -> bool:
        """Give a complete file its name unless that exists; return whether it did."""
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS may answer so to a repeated request of which the first one succeeded.
            return self._read(asset, record.number).token == record.token
        except OSError:
            # A file system without hard links.
            try:
                with open(path, "xb") as file:
                    file.write(record.content())
            except FileExistsError:
                return False
        return True

    def _forget_earlier(self, asset: str, number: int) -> None:
        now = file_time(self.home)
        for path in self._folder(asset).iterdir():
            with contextlib.suppress(OSError):
                is_lease = path.suffix == SUFFIX and path.stem.isdigit()
                earlier = int(path.stem) < number if is_lease else path.name.startswith(".")
                if earlier and now - path.stat().st_mtime > KEPT_S:
                    path.unlink()


class _Seen:
    """How long the same silent heartbeat has been looked at."""

    def __init__(self) -> None:
        self._what, self._since = "", 0.0

    def lasts(self, what: str, expiry_s: float) -> bool:
        """Return whether `what` has been seen for the time in which a heartbeat was due."""
        if what != self._what:
            self._what, self._since = what, time.monotonic()
        return time.monotonic() - self._since > expiry_s / BEATS_PER_EXPIRY


def _waiting(asset: str, record: LeaseRecord) -> str:
    if record.owner is None:
        return f"{asset}: waits until its lease, which cannot be read, expires"
    if record.owner.is_local and not record.owner.runs_here():
        return f"{asset}: waits for the checkpoint of a run that was killed"
    return f"{asset}: waits for {record.owner.described}, which is making it"
