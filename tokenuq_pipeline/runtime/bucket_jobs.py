"""The jobs of a stage in the bucket of a store, and their copies in the stage's folder of checkpoints here.

`launchers/job_folders.py` follows and ends jobs by their folders. Here the folders are copies of what the objects of
`tokenuq_ml/stages/job_objects.py` hold: as long as a launcher works on a stage, what jobs write is copied here, what
the launcher says to them is copied into the bucket, and a folder that is deleted here is deleted there.
"""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from tokenuq_ml.background import looking
from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store.bucket import ObjectInfo
from tokenuq_ml.object_store.mirror import Mirror
from tokenuq_ml.object_store.registry import mirror_holding
from tokenuq_ml.stages import job_files
from tokenuq_ml.stages.job_files import JobDescription
from tokenuq_ml.stages.job_objects import (
    CARRIED,
    SAID,
    CarriedJob,
    ReceivedFile,
    StoredFile,
    StoredOutputs,
    key_in,
    relocated_description,
    relocated_request,
)
from tokenuq_ml.stages.request import StageRequest

LOOK_S = 1.0
"""Seconds between two looks at the jobs of a stage, each a list of their objects."""
_GIVEN = (job_files.DESCRIPTION, job_files.REQUEST, CARRIED, job_files.LAUNCHER)


class BucketJobs:
    """The jobs of one stage.

    Args:
        mirror: of the store.
        work_dir: the stage's folder of checkpoints, in the mirror.
    """

    def __init__(self, mirror: Mirror, work_dir: Path):
        self._mirror, self._bucket = mirror, mirror.bucket
        self._root = work_dir / job_files.JOBS
        self._key = self._root.relative_to(mirror.home).as_posix()
        self._copies: dict[str, _Copy] = {}
        self._lock = threading.Lock()
        # Of a run that was killed. The bucket has what jobs have written since.
        shutil.rmtree(self._root, ignore_errors=True)

    @property
    def address(self) -> str:
        """Return the address of the store."""
        return str(self._mirror.address)

    def place(self, folder: Path) -> str:
        """Return the place of a job, relative to the store."""
        return key_in(self._key, folder.name)

    def upload(self, folder: Path) -> None:
        """Upload the folder of a new job, with the environment of its stage, which is then deleted here.

        Raises:
            InputError: the stage reads a file that is not in the store.
            StoreAway: the service does not answer.
        """
        job = self.place(folder)
        request = StageRequest.read(folder / job_files.REQUEST)
        reads = list(_reads(request, self._mirror.home))
        carried = CarriedJob(home=str(self._mirror.home), reads=reads, look_s=LOOK_S)
        job_files.write_json(folder / CARRIED, carried)
        with self._lock:
            for name in (*_GIVEN, job_files.ENVIRONMENT):
                self._bucket.write(key_in(job, name), (folder / name).read_bytes())
            (folder / job_files.ENVIRONMENT).unlink()
            self._copies[folder.name] = _Copy(self._mirror, job, folder)

    def look(self) -> None:
        """Bring jobs and their folders here up to date with each other.

        Raises:
            StoreAway: the service does not answer.
        """
        with self._lock:
            found: dict[str, dict[str, ObjectInfo]] = {}
            for info in self._bucket.objects(self._key):
                name, _, rest = info.key.removeprefix(f"{self._key}/").partition("/")
                found.setdefault(name, {})[rest] = info
            for name, objects in found.items():
                self._look_at(name, objects)

    def _look_at(self, name: str, objects: dict[str, ObjectInfo]) -> None:
        copy = self._copies.get(name)
        if copy is None and all(given in objects for given in _GIVEN):
            copy = self._copies[name] = _Copy.brought(self._mirror, key_in(self._key, name), self._root / name)
        if copy is None or not copy.folder.is_dir():
            # Deleted here, or in part there.
            self._bucket.delete([info.key for info in objects.values()])
        else:
            with contextlib.suppress(FileNotFoundError):
                # Deleted here meanwhile.
                copy.update(objects)


class _Copy:
    """The folder of a job here.

    Args:
        mirror: of the store.
        key: of the job.
        folder: which is there.
    """

    def __init__(self, mirror: Mirror, key: str, folder: Path):
        self.folder = folder
        self._mirror, self._bucket, self._key = mirror, mirror.bucket, key
        self._told = (folder / job_files.LAUNCHER).read_bytes()
        files = (job_files.MESSAGES, job_files.STDOUT, job_files.STDERR)
        self._received = {name: ReceivedFile(folder / name) for name in files}

    @classmethod
    def brought(cls, mirror: Mirror, key: str, folder: Path) -> "_Copy":
        """Return the copy of a job that another process has submitted, with the paths of this machine."""
        content = {name: found[0] for name in _GIVEN if (found := mirror.bucket.read(key_in(key, name)))}
        folder.mkdir(parents=True)
        carried = CarriedJob.model_validate_json(content[CARRIED])
        old, new = carried.home, str(mirror.home)
        request = StageRequest.model_validate_json(content[job_files.REQUEST])
        relocated_request(request, old, new).write(folder / job_files.REQUEST)
        description = JobDescription.model_validate_json(content[job_files.DESCRIPTION])
        (folder / job_files.LAUNCHER).write_bytes(content[job_files.LAUNCHER])
        copy = cls(mirror, key, folder)
        # Last: a folder without it is none of a job that can be followed.
        job_files.write_json(folder / job_files.DESCRIPTION, relocated_description(description, old, new))
        return copy

    def update(self, objects: dict[str, ObjectInfo]) -> None:
        """Copy what is new in either direction. `objects` are those of the job, by their names in it."""
        said = (self.folder / job_files.LAUNCHER).read_bytes()
        if said != self._told and job_files.LAUNCHER in objects:
            self._bucket.write(key_in(self._key, job_files.LAUNCHER), said)
            self._told = said
        if (beat := objects.get(job_files.BEAT)) is not None:
            self._set_beat(self._mirror.clock.age_of(beat))
        for name, info in objects.items():
            if name.startswith(f"{job_files.OUTPUTS}/"):
                self._bring(name, info)
        # In order of their first bytes. What precedes a result is here now.
        for name, info in sorted(objects.items()):
            path = PurePosixPath(name)
            if path.parts[0] == SAID and path.parent.name in self._received:
                self._received[path.parent.name].take(int(path.name), info.bytes, partial(self._read, info))
        if job_files.ENDED in objects:
            self._bring(job_files.ENDED, objects[job_files.ENDED])

    def _set_beat(self, age_s: float) -> None:
        """Let the time of the heartbeat's file say how old the heartbeat is."""
        path, then = self.folder / job_files.BEAT, time.time() - age_s
        path.touch()
        os.utime(path, (then, then))

    def _bring(self, name: str, info: ObjectInfo) -> None:
        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            content, part = self._read(info), path.with_name(f"{path.name}.part")
            part.write_bytes(content)
            os.replace(part, path)

    def _read(self, info: ObjectInfo) -> bytes:
        found = self._bucket.read(info.key)
        if found is None:
            raise FileNotFoundError(info.key)
        return found[0]


@contextlib.contextmanager
def bucket_jobs(work_dir: Path) -> Iterator[BucketJobs | None]:
    """Bring the jobs of a stage here, and keep them up to date until the block ends; None for a store in a folder.

    Args:
        work_dir: the stage's folder of checkpoints, whose lease the caller holds.

    Raises:
        StoreAway: the service does not answer before the block begins.
    """
    mirror = mirror_holding(work_dir)
    if mirror is None:
        yield None
        return
    jobs = BucketJobs(mirror, work_dir)
    jobs.look()

    def look() -> bool:
        with contextlib.suppress(InputError, OSError):
            jobs.look()
        return False

    try:
        with looking(look, LOOK_S, "bucket-jobs"):
            yield jobs
    finally:
        look()


def uploaded(folder: Path) -> list[StoredFile] | None:
    """Return the files of an output that a job has uploaded; None of one that was made on this machine.

    Args:
        folder: of the output, `<...>/<stage>/<output>`.
    """
    try:
        stored = StoredOutputs.model_validate_json(folder.parent.with_suffix(".json").read_bytes())
    except FileNotFoundError:
        return None
    return stored.files[folder.name]


def _reads(request: StageRequest, home: Path) -> Iterable[StoredFile]:
    """Yield what a stage reads of the store.

    Raises:
        InputError: an input is not in the store.
    """
    for name, folder in request.inputs.items():
        record = request.recorded.get(name)
        if record is None or not Path(folder).is_relative_to(home):
            raise InputError(
                f"{request.entrypoint} reads {folder}, which is not in the store, so that nodes may lack it; "
                "unset TOKENUQ_LAUNCHER for this asset"
            )
        place = Path(folder).relative_to(home).as_posix()
        for path, file in record.files.items():
            if file.sha256 is not None:
                yield StoredFile(path=f"{place}/{path}", bytes=file.bytes, sha256=file.sha256)
