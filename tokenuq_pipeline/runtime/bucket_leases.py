"""The leases of a store in a bucket: objects `.leases/<asset>/<number>.lease`, each created by a conditional put.

S3 answers a put with `If-None-Match: *` for one of several writers, and lists what it holds at once, so nothing has to
be waited for or looked at twice, as on a network file system.
"""

from pathlib import Path

from tokenuq_ml.object_store.bucket import ObjectInfo
from tokenuq_ml.object_store.mirror import Mirror
from tokenuq_pipeline.runtime.lease_files import FOLDER, KEPT_S, SUFFIX, LeaseRecord, parsed_record

_read: dict[tuple[Path, str], tuple[tuple[int, str], bytes]] = {}
"""Store and asset -> number and ETag of its latest lease, and what it holds."""


class BucketLeaseFiles:
    """The leases of a store in a bucket; the methods are those of `LeaseFiles`."""

    def __init__(self, mirror: Mirror):
        self._mirror, self._bucket = mirror, mirror.bucket

    def latest(self, asset: str) -> LeaseRecord | None:
        """Return the current lease of an asset, also one that was released; None if there was none."""
        numbers = self._numbers(asset)
        if not numbers:
            return None
        number = max(numbers)
        found = self._bucket.read(_key(asset, number))
        if found is None:
            return LeaseRecord(number, 0.0, None)
        return parsed_record(number, self._mirror.clock.age_of(found[1]), found[0])

    def create(self, asset: str, record: LeaseRecord) -> bool:
        """Create the object of a number; return False if another process has it, or a higher one."""
        key = _key(asset, record.number)
        if self._bucket.write_if(key, record.content(), None) is None:
            return False
        numbers = self._numbers(asset)
        if max(numbers, default=0) > record.number:
            self._bucket.delete([key])
            return False
        age = self._mirror.clock.age_of
        old = [_key(asset, number) for number, info in numbers.items() if number < record.number and age(info) > KEPT_S]
        if old:
            self._bucket.delete(old)
        return True

    def rewrite(self, asset: str, record: LeaseRecord) -> None:
        """Replace the content of an existing lease."""
        key = _key(asset, record.number)
        if (info := self._bucket.info(key)) is not None:
            self._bucket.write_if(key, record.content(), info.etag)

    def _record(self, asset: str, number: int, info: ObjectInfo) -> LeaseRecord:
        """Return a lease that is listed; it is read only if it is not the one that was read last."""
        known = _read.get((self._mirror.home, asset))
        if known is None or known[0] != (number, info.etag):
            content = self._bucket.read(info.key)
            known = _read[self._mirror.home, asset] = ((number, info.etag), content[0] if content else b"")
        return parsed_record(number, self._mirror.clock.age_of(info), known[1])

    def _numbers(self, asset: str) -> dict[int, ObjectInfo]:
        """Return number -> object, for objects directly in the folder: another asset's name may begin with this one."""
        folder = f"{FOLDER}/{asset}"
        infos = {info.key.removeprefix(f"{folder}/"): info for info in self._bucket.objects(folder)}
        names = {name.removesuffix(SUFFIX): info for name, info in infos.items() if name.endswith(SUFFIX)}
        return {int(name): info for name, info in names.items() if name.isdigit()}


def _key(asset: str, number: int) -> str:
    return f"{FOLDER}/{asset}/{number:08d}{SUFFIX}"
