"""Checkpoints of a stage in the bucket of its store, so that it resumes on another machine.

The stage writes them to a folder of its machine, as it writes them to any store. Those that are complete are copied
into the bucket: the files that the marker `COMPLETE` lists, each under its SHA-256, and the marker last. Answers of a
stopped evaluation are copied too.
"""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tokenuq_ml.object_store.address import CHECKPOINTS, is_inside
from tokenuq_ml.object_store.bucket import ObjectInfo
from tokenuq_ml.object_store.mirror import AT_ONCE, Mirror, key_of

MARKER, ANSWERS = "COMPLETE", "answers"
LOOK_S = 5.0
"""Seconds between two looks for a new checkpoint."""


@dataclass(frozen=True)
class _File:
    """A file of a checkpoint, as its marker lists it."""

    mirror: Mirror
    path: str
    sha256: str

    @property
    def bytes(self) -> int:
        """Return its size, which markers do not list: that of the file here; -1 without one."""
        try:
            return (self.mirror.home / self.path).stat().st_size
        except OSError:
            return -1


class CheckpointCopies:
    """The checkpoints of one stage, here and in the bucket.

    Args:
        mirror: of the store.
        asset: the stage's first asset.
    """

    def __init__(self, mirror: Mirror, asset: str):
        self._mirror, self._folder = mirror, f"{CHECKPOINTS}/{asset}"
        self._home = mirror.home / self._folder
        self._markers: dict[str, tuple[bytes, set[str]]] = {}
        """Key of a marker in the bucket -> its content, and the keys of the files that it lists."""
        self._answers: dict[str, int] = {}
        """Key of answers in the bucket -> their size."""

    def bring(self) -> None:
        """Download complete checkpoints and answers that are further than those here."""
        for key, info in self._objects().items():
            relative = PurePosixPath(key).relative_to(self._folder)
            if relative.name == MARKER:
                self._bring_checkpoint(key, relative)
            elif relative.parts[0] == ANSWERS:
                self._bring_answers(info, self._home / relative)

    def send(self) -> None:
        """Copy what is complete and new into the bucket, and delete there what is no longer here."""
        for marker in self._home.glob(f"*/checkpoint-*/{MARKER}"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                # The stage may delete it while it is sent: the next one is complete then.
                self._send_checkpoint(marker)
        for path in (self._home / ANSWERS).glob("*.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                self._send_answers(path)
        gone = [key for key in (*self._markers, *self._answers) if not (self._mirror.home / key).exists()]
        if gone:
            self._forget(gone)

    def _forget(self, gone: list[str]) -> None:
        # Markers first: what has none is not brought.
        self._mirror.delete(gone)
        lost = set[str]().union(*(self._markers.pop(key, (b"", set()))[1] for key in gone))
        kept = set[str]().union(*(files for _, files in self._markers.values()))
        self._mirror.delete(sorted(lost - kept))
        for key in gone:
            self._answers.pop(key, None)

    def _send_checkpoint(self, marker: Path) -> None:
        key, content = marker.relative_to(self._mirror.home).as_posix(), marker.read_bytes()
        if self._markers.get(key, (b"",))[0] == content:
            return
        files = self._listed(content, marker.parent.parent.name)
        self._mirror.upload_all((file, self._mirror.home / file.path) for file in files)
        self._mirror.bucket.write(key, content)
        self._markers[key] = content, {key_of(file) for file in files}

    def _send_answers(self, path: Path) -> None:
        key, size = path.relative_to(self._mirror.home).as_posix(), path.stat().st_size
        if self._answers.get(key) != size:
            self._mirror.bucket.upload(key, path)
            self._answers[key] = size

    def _bring_checkpoint(self, key: str, relative: PurePosixPath) -> None:
        found = self._mirror.bucket.read(key)
        marker = self._home / relative
        if found is None or not _is_marker(relative):
            return
        try:
            files = self._listed(found[0], relative.parts[0])
        except ValueError:
            return
        if not marker.exists() and _step(relative) > self._step_here(relative.parts[0]):
            with ThreadPoolExecutor(AT_ONCE) as pool:
                if any(pool.map(self._mirror.fetch, files)):
                    return
            # That of kept parts is alone in its folder.
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_bytes(found[0])
        self._markers[key] = found[0], {key_of(file) for file in files}

    def _bring_answers(self, info: ObjectInfo, path: Path) -> None:
        if not path.exists() or path.stat().st_size < info.bytes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(self._mirror.bucket.chunks(info.key, info.bytes)))
        self._answers[info.key] = info.bytes

    def _step_here(self, name: str) -> int:
        """Return the step of the last complete checkpoint here, in a folder of checkpoints; -1 without one."""
        found = (self._home / name).glob(f"checkpoint-*/{MARKER}")
        return max((_step(PurePosixPath(path)) for path in found), default=-1)

    def _listed(self, marker: bytes, name: str) -> list[_File]:
        """Return the files that a marker lists; its paths are relative to the folder `name`.

        Raises:
            ValueError: it is no list of files in that folder.
        """
        listed = json.loads(marker)
        if not (isinstance(listed, dict) and listed and all(map(is_inside, listed))):
            raise ValueError("not a marker")
        return [_File(self._mirror, f"{self._folder}/{name}/{path}", str(digest)) for path, digest in listed.items()]

    def _objects(self) -> dict[str, ObjectInfo]:
        return {info.key: info for info in self._mirror.bucket.objects(self._folder)}


def _is_marker(path: PurePosixPath) -> bool:
    return len(path.parts) == 3 and path.parent.name.rpartition("-")[2].isdigit()


def _step(marker: PurePosixPath) -> int:
    return int(marker.parent.name.rpartition("-")[2])
