"""Heartbeats in the bucket of a store: what tells machines that share no file system that an owner still works.

The time of an object is set by the service and compared with the service's clock, so those of the machines do not
matter. Knows owners by their text only.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from tokenuq_ml.object_store.mirror import Mirror
from tokenuq_ml.object_store.registry import bucket_mirror

FOLDER = ".owners"


@dataclass(frozen=True)
class BucketRecord:
    """The heartbeat of an owner."""

    written_at: float
    age_s: float
    content: bytes


class BucketHeartbeat:
    """This process's heartbeat in a bucket.

    Args:
        mirror: of the store.
        owner: this process, as text.
        expiry_s: after how long without heartbeat it counts as dead.
    """

    def __init__(self, mirror: Mirror, owner: str, expiry_s: float):
        self._mirror, self._key = mirror, f"{FOLDER}/{owner}"
        self._bucket = mirror.bucket.quick()
        self._content = json.dumps({"expiry_s": expiry_s, "file": []}).encode()
        self.beat()

    def beat(self) -> None:
        """Renew it.

        Raises:
            StoreAway: the service does not answer in time.
        """
        self._mirror.clock.set_by(self._bucket, self._key, self._content)

    def end(self) -> None:
        """Remove it."""
        with contextlib.suppress(OSError):
            self._bucket.delete([self._key])


def bucket_heartbeat(home: Path, owner: str, expiry_s: float) -> BucketHeartbeat | None:
    """Return a new heartbeat in the bucket that a folder mirrors; None for a store in a folder."""
    mirror = bucket_mirror(home)
    return None if mirror is None else BucketHeartbeat(mirror, owner, expiry_s)


def read_heartbeat(mirror: Mirror, owner: str) -> BucketRecord | None:
    """Return the heartbeat of an owner; None if there is none."""
    found = mirror.bucket.read(f"{FOLDER}/{owner}")
    if found is None:
        return None
    content, info = found
    return BucketRecord(info.modified.timestamp(), mirror.clock.age_of(info), content)


def delete_old_heartbeats(mirror: Mirror, kept_s: float) -> None:
    """Delete heartbeats that no owner has renewed for `kept_s`."""
    old = [info.key for info in mirror.bucket.objects(FOLDER) if mirror.clock.age_of(info) > kept_s]
    if old:
        mirror.bucket.delete(old)
