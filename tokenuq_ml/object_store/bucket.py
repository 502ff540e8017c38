"""The objects of a store in a bucket: read, written, created only if they are new, listed and deleted.

obstore speaks to the service. It signs each request with the hash of its body, repeats what fails (5xx, cut and refused
connections, reads that time out) with growing pauses, and uploads large files in parts, which appear as one object or
not at all. fsspec with s3fs, which reads datasets at `s3://` addresses, has no conditional put.

Added here: a conditional put whose answer was lost is looked up before it is repeated; large objects are read in
ranges, each of which is repeated alone; errors are one sentence.
"""

import contextlib
import itertools
import os
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store.address import Address, endpoint
from tokenuq_ml.object_store.credentials import credential_provider

AWAY_VARIABLE = "TOKENUQ_STORE_TIMEOUT_SECONDS"
AWAY_S = 120.0
"""How long a request is repeated while the service is away. More than 5 minutes would outlive its signature."""
QUICK_S = 10.0
"""The same for heartbeats, which must not be late."""
REQUEST_S = 60.0
"""The limit of one request. The largest is `PART_BYTES`, which then needs 0.15 MB/s."""
PART_BYTES = 8 * 2**20
MAX_PARTS = 9_000
"""S3 takes 10,000 parts."""
PARTS_AT_ONCE = 4
"""Parts of one file that are in memory at once."""


class StoreAway(InputError, OSError):
    """The service does not answer, or answers with errors: what was asked for may succeed later."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object, without its content."""

    key: str
    bytes: int
    etag: str
    modified: datetime
    """By the clock of the service."""


class Bucket:
    """The objects below a prefix of a bucket.

    Args:
        address: of the store.
        away_s: how long requests are repeated while the service is away.
    """

    def __init__(self, address: Address, away_s: float | None = None):
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError:
            raise InputError(
                f"TOKENUQ_HOME: {address}: needs the package obstore; install it with `pip install 'tokenuq[s3]'`"
            ) from None
        self.address, self._obstore = address, obstore
        self._away_s = away_seconds() if away_s is None else away_s
        url = endpoint()
        self._store = S3Store(
            address.bucket,
            prefix=address.prefix or None,
            config={"endpoint": url} if url else {},
            client_options={
                "allow_http": bool(url and url.startswith("http://")),
                "connect_timeout": timedelta(seconds=5),
                "timeout": timedelta(seconds=min(REQUEST_S, max(self._away_s, 1))),
            },
            retry_config={
                # The time alone decides.
                "max_retries": 1000,
                "retry_timeout": timedelta(seconds=self._away_s),
                "backoff": {"max_backoff": timedelta(seconds=5)},
            },
            credential_provider=credential_provider(address),
        )

    def read(self, key: str) -> tuple[bytes, ObjectInfo] | None:
        """Return a small object with its content; None if there is none."""
        with contextlib.suppress(FileNotFoundError), self._errors(key):
            found = self._obstore.get(self._store, key)
            return bytes(found.bytes()), _info(found.meta)
        return None

    def info(self, key: str) -> ObjectInfo | None:
        """Return an object without its content; None if there is none."""
        with contextlib.suppress(FileNotFoundError), self._errors(key):
            return _info(self._obstore.head(self._store, key))
        return None

    def write(self, key: str, content: bytes) -> str:
        """Write an object, in place of an earlier one, and return its ETag."""
        with self._errors(key):
            return str(self._obstore.put(self._store, key, content, use_multipart=False)["e_tag"])

    def write_if(self, key: str, content: bytes, etag: str | None) -> str | None:
        """Write an object if the one in its place is the one that is known.

        Args:
            key: of the object.
            content: should be unlike any other's, for then an answer that was lost is recognised.
            etag: of the object that is replaced; None: there must be none.

        Returns:
            The new ETag; None if the place holds another object.
        """
        mode: Any = {"e_tag": etag} if etag else "create"
        end = time.monotonic() + self._away_s
        while True:
            try:
                with self._errors(key):
                    return str(self._obstore.put(self._store, key, content, mode=mode, use_multipart=False)["e_tag"])
            except (self._obstore.exceptions.AlreadyExistsError, self._obstore.exceptions.PreconditionError):
                # Also the answer to the second try of a put whose first one succeeded.
                found = self.read(key)
                return found[1].etag if found and found[0] == content else None
            except StoreAway:
                # Not repeated by obstore after a timeout, because it may have succeeded.
                if time.monotonic() >= end:
                    raise
                time.sleep(random.uniform(0.1, 1.0))

    def upload(self, key: str, path: Path) -> None:
        """Upload a file, in parts if it is large. The object appears when all parts have arrived."""
        size = path.stat().st_size
        part = max(PART_BYTES, -(-size // MAX_PARTS))
        end = time.monotonic() + self._away_s
        while True:
            try:
                with self._errors(key):
                    self._obstore.put(self._store, key, path, chunk_size=part, max_concurrency=PARTS_AT_ONCE)
                    return
            except StoreAway:
                if time.monotonic() >= end:
                    raise
                time.sleep(random.uniform(0.1, 1.0))

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        """Yield the content of an object of a known size, a part at a time; the next parts are read meanwhile.

        Raises:
            FileNotFoundError: there is no such object.
        """

        def part(start: int) -> bytes:
            with self._errors(key):
                return bytes(self._obstore.get_range(self._store, key, start=start, end=min(start + PART_BYTES, size)))

        starts = iter(range(0, size, PART_BYTES))
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            ahead = deque(pool.submit(part, start) for start in itertools.islice(starts, PARTS_AT_ONCE))
            while ahead:
                content = ahead.popleft().result()
                ahead.extend(pool.submit(part, start) for start in itertools.islice(starts, 1))
                yield content

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose keys begin with the folders of `prefix`."""
        with self._errors(prefix):
            for batch in self._obstore.list(self._store, prefix or None):
                yield from map(_info, batch)

    def delete(self, keys: list[str]) -> None:
        """Delete objects; those that do not exist count as deleted."""
        with self._errors(keys[0] if keys else ""):
            for start in range(0, len(keys), 1000):
                self._obstore.delete(self._store, keys[start : start + 1000])

    def quick(self) -> "Bucket":
        """Return the same objects, for requests that give up early."""
        return Bucket(self.address, min(QUICK_S, self._away_s))

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn errors of the service into one sentence; that an object is missing or differs is not one."""
        errors = self._obstore.exceptions
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from None
            raise
        except (errors.AlreadyExistsError, errors.PreconditionError):
            raise
        except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            raise InputError(
                f"{self.address}: access is denied to {key or 'its list of objects'} ({_reason(error)}); check the "
                "credentials and the policy of the bucket"
            ) from None
        except errors.BaseError as error:
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from None
            where = endpoint() or "Amazon S3"
            raise StoreAway(
                f"{self.address}: {where} does not answer as it should ({_reason(error)}); run the same command again "
                "once it does: what is complete is kept"
            ) from None

    def _no_bucket(self) -> InputError:
        return InputError(
            f"{self.address}: there is no bucket {self.address.bucket}; create it, or correct TOKENUQ_HOME"
        )


def away_seconds(environment: Mapping[str, str] = os.environ) -> float:
    """Return how long requests are repeated while the service is away: `$TOKENUQ_STORE_TIMEOUT_SECONDS`, or 120.

    Raises:
        InputError: the variable is not a number of seconds up to 300.
    """
    text = environment.get(AWAY_VARIABLE)
    try:
        value = AWAY_S if text is None else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 300:
        raise InputError(f"{AWAY_VARIABLE}: must be a number of seconds up to 300, is {text!r}")
    return value


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["e_tag"] or "", meta["last_modified"])


def _reason(error: Exception) -> str:
    """Return the cause, which is at the end of obstore's first line, at a length that fits into a sentence."""
    line = str(error).strip().partition("\n")[0].rpartition(" - ")[2].partition(": <?xml")[0]
    return line if len(line) <= 200 else f"{line[:50]} … {line[-150:]}"
