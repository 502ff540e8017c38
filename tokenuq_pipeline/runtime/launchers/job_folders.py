"""The folders of a stage's jobs on a cluster (`tokenuq_ml/stages/job_files.py`): find them, follow them, end them.

A job outlasts the run that has started it. Whoever makes the same asset next follows the job, or ends it first, so that
two trainings never write into one folder of checkpoints. For that it needs no cluster, only the store.

Neither Dagster's tags nor the cluster's list of jobs would do: a store may serve several Dagster instances, and a
cluster forgets its jobs when its head node restarts. Both name the job too, for people.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tokenuq_ml.stages import job_files
from tokenuq_ml.stages.failures import write_reserve
from tokenuq_ml.stages.job_files import JobDescription, JobEnd
from tokenuq_ml.stages.request import StageRequest

T = TypeVar("T")
POLL_S = 0.5
CLOCK = ".clock"
"""A file next to the jobs, from which the file system's time is read."""


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job."""

    path: Path

    @property
    def id(self) -> str:
        """Return the job's id, under which it was submitted."""
        return self.path.name

    def description(self) -> JobDescription | None:
        """Return what the job runs; None if its launcher died while it wrote that."""
        return _read(lambda: JobDescription.model_validate_json((self.path / job_files.DESCRIPTION).read_text()))

    def request(self) -> StageRequest | None:
        """Return what the job makes, with the folders that it writes to."""
        return _read(lambda: StageRequest.read(self.path / job_files.REQUEST))

    def end(self) -> JobEnd | None:
        """Return how the stage ended; None as long as it is not known."""
        return _read(lambda: job_files.read_end(self.path))

    def silence(self) -> float | None:
        """Return the seconds since the job's last heartbeat, by the file system's clock; None before it has started."""
        try:
            # Opened, not only looked at: that makes NFS ask the server for the time.
            with open(self.path / job_files.BEAT, "rb") as file:
                beat = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        clock = self.path.parent / CLOCK
        clock.touch()
        return max(0.0, clock.stat().st_mtime - beat)

    def works(self) -> bool:
        """Return whether the job has started, and may still work."""
        description, silence = self.description(), self.silence()
        return description is not None and silence is not None and silence <= description.expiry_s and not self.end()

    def fits(self, request: StageRequest) -> bool:
        """Return whether the job makes everything that a request asks for, from the same inputs."""
        own = self.request()
        if own is None or own.entrypoint != request.entrypoint:
            return False
        for stage, asset in request.assets.items():
            if stage not in own.assets:
                return False
            made = own.assets[stage]
            if (made.fields, made.code_version) != (asset.fields, asset.code_version):
                return False
        # What the job has made itself, and an earlier run has published, is an input now.
        made_by_job = {output for asset in own.assets.values() for output in asset.outputs}
        same = all(one == request.recorded[name] for name, one in own.recorded.items() if name in request.recorded)
        return same and request.inputs.keys() <= own.inputs.keys() | made_by_job

    def remove(self) -> None:
        """Delete the folder. A job that has not started yet then ends at once."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.path.parent / CLOCK).unlink(missing_ok=True)
            self.path.parent.rmdir()


def jobs_in(work_dir: Path) -> list[JobFolder]:
    """Return the jobs in a folder of checkpoints."""
    folder = work_dir / job_files.JOBS
    return [JobFolder(path) for path in sorted(folder.glob("*")) if path.is_dir()]


def create_job(work_dir: Path, name: str, request: StageRequest, description: JobDescription) -> JobFolder:
    """Create the folder of a job, complete but for its environment.

    Args:
        work_dir: the stage's folder of checkpoints.
        name: the job's id.
        request: what the job makes; its outputs go to the job's folder.
        description: how it is run; `{request}` in its arguments is replaced by the path of the request.
    """
    path = work_dir / job_files.JOBS / name
    path.mkdir(parents=True)
    own = request.model_copy(deep=True)
    for stage, asset in own.assets.items():
        asset.outputs = {output: str(path / job_files.OUTPUTS / stage / output) for output in asset.outputs}
        for folder in asset.outputs.values():
            Path(folder).mkdir(parents=True)
    own.write(path / job_files.REQUEST)
    write_reserve(path)
    for empty in (job_files.LAUNCHER, job_files.MESSAGES):
        (path / empty).touch()
    arguments = [one.replace("{request}", str(path / job_files.REQUEST)) for one in description.arguments]
    job_files.write_json(path / job_files.DESCRIPTION, description.model_copy(update={"arguments": arguments}))
    return JobFolder(path)


def end_jobs(work_dir: Path, say: Callable[[str], None], kept: JobFolder | None = None) -> None:
    """End the jobs in a folder of checkpoints, with a checkpoint, wait for that, and delete their folders.

    Args:
        work_dir: the folder.
        say: called with one sentence before waiting.
        kept: a job that goes on.
    """
    for job in jobs_in(work_dir):
        if job == kept:
            continue
        told = False
        while job.works():
            if not told:
                with contextlib.suppress(OSError):
                    job_files.say(job.path, job_files.STOP)
                say(f"waiting until the job {job.id}, started earlier, has written its checkpoint or is silent")
                told = True
            time.sleep(POLL_S)
        job.remove()


def _read(read: Callable[[], T]) -> T | None:
    """Return what is read, or None if it is missing or damaged: its writer may have died."""
    with contextlib.suppress(ValueError, FileNotFoundError):
        return read()
    return None


def beating_for(job: JobFolder, is_held: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that tells the job that its launcher is there, as long as the lease is held.

    For `background.looking`; it returns False, so that it is called again.
    """

    def tell() -> bool:
        # A file server that is away: the next call tries again. The job works on for `unattended_s`.
        with contextlib.suppress(OSError):
            if is_held():
                job_files.say(job.path, job_files.ALIVE)
        return False

    return tell
