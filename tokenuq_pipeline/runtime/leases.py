"""Leases: one process at a time makes an asset, on however many machines the store is mounted.

A lease is a file `.leases/<asset>/<number>.lease`. Taking it is creating the file of the next number, which every file
system refuses if the file exists; the highest number is the current lease. Its holder renews a heartbeat (`owners.py`).
Another process takes the next number once the holder has released its own, is dead, or has been silent for longer than
`TOKENUQ_LEASE_SECONDS`. `Lease.require`, called before anything is published, takes the next number too: it fails if
another process has it, so who lost the lease publishes nothing (fencing).

In a bucket, taking the next number is a conditional put (`bucket_leases.py`), and so is the publication of a manifest,
which closes that moment on all machines.

Nothing here relies on `flock`, which network file systems lack or imitate. Where it works, `store_lock` also closes the
moment between `require` and the rename that follows: a holder that is suspended exactly there keeps others waiting.
Where it does not, such a holder can put an older folder in place after its wake-up; the hashes in the manifest tell.

filelock and portalocker lock by `flock` or by a file without expiry. Dagster's pools count steps within one Dagster
instance; a store may serve several.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenuq_ml.object_store.registry import bucket_mirror
from tokenuq_pipeline.runtime.bucket_leases import BucketLeaseFiles
from tokenuq_pipeline.runtime.folder_lock import store_lock
from tokenuq_pipeline.runtime.lease_files import LeaseFiles, LeaseRecord
from tokenuq_pipeline.runtime.owners import BEATS_PER_EXPIRY, Heartbeat, Owner, beating, expiry, heartbeat_of
from tokenuq_pipeline.runtime.processes import is_alive
from tokenuq_pipeline.runtime.store_layout import worker_of

POLL_S = 0.5
_HELD: set[str] = set()
"""Tokens of the leases that this process holds."""


class LeaseLost(Exception):
    """Another process has taken the lease."""


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
    """The leases of a store: files in its folder, or objects in its bucket."""

    def __init__(self, home: Path):
        self.home, mirror = home, bucket_mirror(home)
        self._files = LeaseFiles(home) if mirror is None else BucketLeaseFiles(mirror)

    def latest(self, asset: str) -> LeaseRecord | None:
        """Return the current lease of an asset, also one that was released; None if there was none."""
        return self._files.latest(asset)

    def create(self, asset: str, record: LeaseRecord) -> bool:
        """Take a number; return False if another process has it, or a higher one."""
        return self._files.create(asset, record)

    def rewrite(self, asset: str, record: LeaseRecord) -> None:
        """Replace what is recorded under a number that this process has."""
        self._files.rewrite(asset, record)

    def holder(self, asset: str) -> Owner | None:
        """Return the process that makes `asset` now, or whose child still writes its checkpoint; None if none does.

        Reads two leases at most: that of a child process has the name of its first asset, and a store may have
        thousands.
        """
        for name in dict.fromkeys((asset, worker_of(asset))):
            record = self._files.latest(name)
            if record is None or record.released or record.owner is None:
                continue
            if (name == asset or asset in record.makes) and not self._is_free(record):
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
