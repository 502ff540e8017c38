"""The folder of a job in the bucket of its store, for machines that share no file system.

The launcher and the job each have the folder of `job_files.py` on their own machine, and work with it as if it were
shared. What one of them writes is copied to the other through objects below `.checkpoints/<asset>/jobs/<id>/`:

| object | written by | content |
|---|---|---|
| `job.json`, `request.json`, `carried.json` | launcher | what to run, and which files of the store it reads |
| `environment.json` | launcher | variables of the stage; deleted by the job as it starts |
| `launcher` | launcher | as in the folder. Without it, the job has been taken for dead, and nobody waits for it |
| `beat` | job | its time, which the service sets, is the job's heartbeat |
| `said/<file>/<first byte>` | job | messages and output, in parts; the last one is written again as it grows |
| `outputs/<stage>.json` | job | the files of each output, which are in the bucket under their final names |
| `ended.json` | job | how the stage ended; the last object |

Not through Ray: its jobs have no channel but a merged log, which loses lines, and its head forgets both in a restart.
"""

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from tokenuq_ml.object_store.bucket import Bucket
from tokenuq_ml.stages import job_files
from tokenuq_ml.stages.job_files import JobDescription
from tokenuq_ml.stages.request import StageRequest

CARRIED, SAID = "carried.json", "said"
PART_BYTES = 2**16
"""Size from which a part does not grow any more."""
READ_BYTES = 2**23
"""Bytes that are sent at once, unless a message is longer."""
OUTPUT_BYTES, END_BYTES = 2**22, 2**16
"""Output that is sent while a stage works, and of what follows, its end. The launcher shows no more."""


class StoredFile(BaseModel):
    """A file of the store, as manifests record it."""

    path: str
    """Relative to the store."""
    bytes: int
    sha256: str


class CarriedJob(BaseModel):
    """What a job must know that shares no file system with its launcher."""

    home: str
    """The store's folder on the launcher's machine, with which the paths of the request begin."""
    reads: list[StoredFile]
    """What the stage reads of the store."""
    look_s: float
    """Seconds between two looks at what the other side has written."""


class StoredOutputs(BaseModel):
    """What a job has uploaded of one asset."""

    files: dict[str, list[StoredFile]]
    """Output -> its files."""


def key_in(job_key: str, *parts: str) -> str:
    """Return the key of an object of a job."""
    return "/".join((job_key, *parts))


def outputs_file(stage: str) -> str:
    """Return the name, in a job's folder and in its objects, of the list of what was uploaded of an asset."""
    return f"{job_files.OUTPUTS}/{stage}.json"


def relocated_request(request: StageRequest, old: str, new: str) -> StageRequest:
    """Return a request for a machine on which the store's folder is another one."""
    own = request.model_copy(deep=True)
    own.work_dir = _moved(own.work_dir, old, new)
    own.inputs = {name: _moved(path, old, new) for name, path in own.inputs.items()}
    for asset in own.assets.values():
        asset.outputs = {output: _moved(path, old, new) for output, path in asset.outputs.items()}
    return own


def relocated_description(description: JobDescription, old: str, new: str) -> JobDescription:
    """Return what a job runs, for a machine on which the store's folder is another one."""
    return description.model_copy(update={"arguments": [_moved(one, old, new) for one in description.arguments]})


def _moved(path: str, old: str, new: str) -> str:
    return f"{new}{path.removeprefix(old)}" if path.startswith(f"{old}/") else path


class SentFile:
    """A file that grows here, and is sent in parts.

    Args:
        bucket: of the store.
        key: of its parts.
        path: of the file.
    """

    def __init__(self, bucket: Bucket, key: str, path: Path):
        self._bucket, self._key, self._path = bucket, key, path
        self._first = self.sent = 0

    def send(self) -> bool:
        """Send what is new; return whether there may be more.

        Raises:
            StoreAway: the service does not answer; the next call sends the same.
        """
        content = self._unsent()
        if content:
            self._put(content)
        return len(content) >= READ_BYTES

    def _put(self, content: bytes) -> None:
        # A part is written again as it grows: its reader takes what it has not read yet.
        earlier = self._read(self._first, self.sent - self._first)
        self._bucket.write(f"{self._key}/{self._first:016d}", earlier + content)
        self.sent += len(content)
        if self.sent - self._first >= PART_BYTES:
            self._first = self.sent

    def _unsent(self) -> bytes:
        return self._read(self.sent, READ_BYTES)

    def _read(self, first: int, size: int) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(first)
                return file.read(size)
        except FileNotFoundError:
            return b""


class SentMessages(SentFile):
    """Messages of Dagster Pipes, which are sent in complete lines.

    Args:
        bucket: of the store.
        key: of the parts.
        path: of the file.
        before: called with the stage of each result before the message is sent.
    """

    def __init__(self, bucket: Bucket, key: str, path: Path, before: Callable[[str], None]):
        super().__init__(bucket, key, path)
        self._before = before

    def _unsent(self) -> bytes:
        content = super()._unsent()
        if len(content) == READ_BYTES and b"\n" not in content:
            content = self._read(self.sent, self._path.stat().st_size - self.sent)
        return content[: content.rfind(b"\n") + 1]

    def _put(self, content: bytes) -> None:
        for line in content.splitlines():
            if (stage := _result_in(line)) is not None:
                self._before(stage)
        super()._put(content)


class SentOutput(SentFile):
    """Standard output or error: its beginning, and at last its end."""

    def send(self) -> bool:
        """Send what is new, as far as it is shown."""
        return self.sent < OUTPUT_BYTES and super().send()

    def send_end(self) -> None:
        """Send the rest, or the end of a long one."""
        while self.send():
            pass
        size = self._path.stat().st_size if self._path.exists() else 0
        if size > self.sent:
            self._first = self.sent = max(self.sent, size - END_BYTES)
            self._put(self._read(self.sent, size - self.sent))


class ReceivedFile:
    """The copy of a file that grows on another machine.

    Args:
        path: of the copy; it is emptied.
    """

    def __init__(self, path: Path):
        self._path, self._position = path, 0
        path.write_bytes(b"")

    def take(self, first: int, size: int, read: Callable[[], bytes]) -> None:
        """Append what a part holds that is new.

        Args:
            first: the first byte of the part.
            size: of the part, as it was listed. It may have grown since, by what other objects have to precede.
            read: returns the part.
        """
        if first + size <= self._position:
            return
        content = read()[max(0, self._position - first) : size]
        with self._path.open("ab") as file:
            file.write(content)
        self._position = first + size


def _result_in(line: bytes) -> str | None:
    """Return the stage whose result a message holds; None if it holds none."""
    start = max(0, line.rfind(b'{"__dagster_pipes_version"'))
    for candidate in (line, line[start:]):
        try:
            payload = json.loads(candidate)["params"]["payload"]
            return str(payload["result"]["stage"]) if payload["kind"] == "result" else None
        except (ValueError, KeyError, TypeError):
            continue
    return None
