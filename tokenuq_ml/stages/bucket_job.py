"""Run a stage as a job of a cluster whose nodes share no file system: `cluster_job.py` for a store in a bucket.

`python -m tokenuq_ml.stages.bucket_job s3://bucket/prefix .checkpoints/<asset>/jobs/<id>`. What the job's folder is
between a launcher and `cluster_job.py`, objects are here (`job_objects.py`). The node needs access to the bucket by
credentials of its own: Ray shows the environment of its jobs to everyone.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store.address import Address, node_folder
from tokenuq_ml.object_store.bucket import StoreAway
from tokenuq_ml.object_store.mirror import Mirror
from tokenuq_ml.stages import job_files
from tokenuq_ml.stages.cluster_job import Job, replace_environment, wrong_code
from tokenuq_ml.stages.failures import write_reserve
from tokenuq_ml.stages.job_carrier import JobCarrier, Taken
from tokenuq_ml.stages.job_files import JobEnd
from tokenuq_ml.stages.node_files import JOB_FOLDER, JOB_STORE, use_given_service
from tokenuq_ml.stages.runner import BUG, INTERRUPTED, messages_to, report_refusal

LOCK, LOCK_POLL_S = ".lock", 0.2


class BucketJob(Job):
    """A running stage whose heartbeat goes to the bucket.

    It works on while the service is away: no other stage writes into its folder of checkpoints, which only this node
    sees, and which is locked.
    """

    beats_in_folder = False
    carrier: JobCarrier
    """Set before the job is followed."""

    def _beat(self) -> None:
        if self.carrier.taken:
            self._signal(signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.write(self._pipe, b".")


def main() -> None:
    """Run the stage that the objects describe, and exit as it did."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tokenuq_ml.stages.bucket_job ADDRESS PLACE")
    stops: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stops.append(number))
    use_given_service()
    try:
        address = Address.parse(sys.argv[1])
        carrier = JobCarrier(Mirror(address, node_folder(address)), sys.argv[2])
        code = _run(carrier, stops)
    except (InputError, OSError, Taken) as error:
        sys.exit(f"this node cannot work for the store: {error}")
    os._exit(code if code >= 0 else 128 - code)


def _run(carrier: JobCarrier, stops: list[int]) -> int:
    """Run the stage; return its exit code, once everything is in the bucket."""
    write_reserve(carrier.folder)
    own = {
        **messages_to(carrier.folder / job_files.MESSAGES),
        JOB_FOLDER: str(carrier.folder),
        JOB_STORE: sys.argv[1],
    }
    replace_environment({**carrier.environment, **own})
    started = False

    def stop(said: bytes) -> None:
        """End a job that is stopped while it downloads what its stage reads."""
        if not started and (stops or said.endswith((job_files.STOP, job_files.KILL))):
            carrier.finish(JobEnd(code=INTERRUPTED), has_worked=False)
            os._exit(INTERRUPTED)

    try:
        with carrier.hearing(stop), _locked(Path(carrier.request.work_dir)):
            code = wrong_code(carrier.description, carrier.folder) or _bring(carrier)
            if code:
                carrier.finish(JobEnd(code=code), has_worked=False)
                return code
            started = True
            job = BucketJob(carrier.folder, carrier.description, os.environ, stops)
            job.carrier = carrier
            with carrier.sending():
                end = job.follow()
            carrier.finish(end, has_worked=True)
            return end.code
    finally:
        carrier.clear()


def _bring(carrier: JobCarrier) -> int:
    """Download what the stage reads; return the exit code if that fails, or 0."""
    try:
        carrier.bring()
    except StoreAway as away:
        # As a stage that crashes: the run repeats it.
        (carrier.folder / job_files.STDERR).write_text(f"{away}\n")
        return BUG
    except InputError as error:
        return report_refusal(str(error), carrier.folder)
    return 0


@contextlib.contextmanager
def _locked(work_dir: Path) -> Iterator[None]:
    """Hold the stage's folder of checkpoints on this node, in which a job that was taken for dead may still work."""
    work_dir.mkdir(parents=True, exist_ok=True)
    with open(work_dir / LOCK, "a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOCK_POLL_S)
            except OSError:
                # A file system without locks.
                break
        yield


if __name__ == "__main__":
    main()
