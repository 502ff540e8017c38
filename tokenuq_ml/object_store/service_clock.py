"""The clock of the service: the times of objects are compared with it, so the clocks of machines do not matter."""

import contextlib
import threading
import time

from tokenuq_ml.object_store.bucket import Bucket, ObjectInfo

CLOCK_KEY = ".mirror/clock"
READ_AGAIN_S = 60.0
"""How long the time is computed by this machine's monotonic clock before it is asked for again."""


class ServiceClock:
    """The time of the service, which tells it by the time that it gives to an object. Precise to a second, as S3's.

    Args:
        bucket: where an object is written.
    """

    def __init__(self, bucket: Bucket):
        self._bucket, self._known = bucket, (0.0, float("-inf"))
        self._lock = threading.Lock()

    def now(self) -> float:
        """Return the time of the service; by this machine where the bucket cannot be written."""
        with self._lock:
            if time.monotonic() - self._known[1] > READ_AGAIN_S:
                with contextlib.suppress(OSError, ValueError):
                    self.set_by(self._bucket, CLOCK_KEY, b"")
            written_at, then = self._known
            return written_at + time.monotonic() - then if written_at else time.time()

    def set_by(self, bucket: Bucket, key: str, content: bytes) -> None:
        """Write an object, and take its time as the time."""
        bucket.write(key, content)
        if (info := bucket.info(key)) is not None:
            self._known = info.modified.timestamp(), time.monotonic()

    def age_of(self, info: ObjectInfo) -> float:
        """Return the seconds since an object was written."""
        return self.now() - info.modified.timestamp()
