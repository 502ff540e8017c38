"""Run a stage as a job of a cluster: `python -m tokenuq_ml.stages.cluster_job FOLDER` (`job_files.py`).

It stands between the cluster and the stage, where a local launcher would be, because the cluster loses what that keeps:
Ray forgets how a stopped job ended, and all of a job when its head node restarts; it shows the environment of a job to
everyone and writes it into logs; and it knows no leases. The stage is a child of this process, with the same pipe as
under a local launcher (`parent_watch.py`): if this process dies, the stage writes a checkpoint and ends.

The job works on while no launcher is there, for `unattended_s`: a launcher that is started again follows it.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenuq_ml.out_of_memory import kills_by_limit, limits_of
from tokenuq_ml.stages import job_files
from tokenuq_ml.stages.job_files import JobDescription, JobEnd
from tokenuq_ml.stages.parent_watch import LEASE_SECONDS, PARENT_PIPE
from tokenuq_ml.stages.provenance import code_hash
from tokenuq_ml.stages.runner import BAD_INPUT, INTERRUPTED, report_refusal

POLL_S = 0.1
LOOK_S = 0.5
"""Seconds between two looks at what the launcher says."""
PIPE_S = 1.0
"""Longest time between two bytes to the stage."""
SET_BY_RAY = ("OMP_NUM_THREADS", "PYTHONBREAKPOINT")
"""Variables that Ray sets for its own workers. It sets one thread wherever a job reserves no processor."""


class StoreWatch:
    """Renews the job's heartbeat and reads what the launcher says, from a thread.

    A file server that is away lets this thread wait, or fail, and nothing else: the stage works on until another run
    could take the job for dead.

    Args:
        folder: of the job.
        beat_s: seconds between two heartbeats; None: it has none, and is only told what the launcher says.

    Attributes:
        renewed: when the heartbeat was last renewed, by `time.monotonic`, or earlier.
        taken: the job's folder was deleted: somebody has taken the job for dead.
        said: what the launcher has said.
    """

    def __init__(self, folder: Path, beat_s: float | None):
        self._folder, self._beat_s = folder, beat_s
        self.renewed, self.taken, self.said = time.monotonic(), False, b""
        threading.Thread(target=self._watch, daemon=True, name="store-watch").start()

    def _watch(self) -> None:
        next_beat = 0.0
        while not self.taken:
            with contextlib.suppress(OSError):
                now = time.monotonic()
                if self._beat_s is not None and now >= next_beat:
                    self._beat()
                    next_beat = now + self._beat_s
                self.said = (self._folder / job_files.LAUNCHER).read_bytes()
            time.sleep(LOOK_S)

    def _beat(self) -> None:
        # The time before: the file system's server sets the heartbeat's own after that.
        now = time.monotonic()
        try:
            os.utime(self._folder / job_files.BEAT)
            self.renewed = now
        except FileNotFoundError:
            # Unless the whole store is gone, as one that is not mounted any more.
            self.taken = self._folder.parents[1].is_dir()


class Job:
    """A running stage, and what is known of its launcher.

    Args:
        folder: of the job.
        description: what it runs.
        environment: of the stage.
        stops: signals that the cluster has sent to all processes of the job, the stage among them.
    """

    beats_in_folder = True
    """Whether the job's heartbeat is a file of its folder."""

    def __init__(self, folder: Path, description: JobDescription, environment: Mapping[str, str], stops: Sequence[int]):
        self._folder, self._description, self._stops = folder, description, stops
        self._beat_s = min(description.expiry_s / job_files.BEATS_PER_EXPIRY, PIPE_S)
        self._kills = kills_by_limit()
        read_end, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        with open(folder / job_files.STDOUT, "ab") as stdout, open(folder / job_files.STDERR, "ab") as stderr:
            self._stage = subprocess.Popen(
                [sys.executable, *description.arguments],
                env={**environment, PARENT_PIPE: str(read_end), LEASE_SECONDS: str(description.expiry_s)},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                pass_fds=[read_end],
            )
        os.close(read_end)
        self._store = StoreWatch(folder, self._beat_s if self.beats_in_folder else None)
        self._renewed, self._silence, self._looked = self._store.renewed, 0.0, time.monotonic()
        self._heard, self._last_size = time.monotonic(), 0
        self._kill_at: float | None = None

    def follow(self) -> JobEnd:
        """Keep the stage going and do what the launcher says, until the stage has ended; return how it did."""
        next_beat = 0.0
        while (code := self._stage.poll()) is None:
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + self._beat_s
                self._beat()
            self._listen()
            if self._stops:
                self._expect_end()
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._signal(signal.SIGKILL)
            time.sleep(POLL_S)
        # Processes that the stage started must not outlive it.
        self._signal(signal.SIGKILL)
        return self._end(code)

    def _beat(self) -> None:
        """Tell the stage that it may work on; kill it before others may take it for dead.

        While the store is away it could write no checkpoint either.
        """
        now, renewed = time.monotonic(), self._store.renewed
        if renewed != self._renewed:
            self._renewed, self._silence = renewed, min(now - renewed, self._beat_s)
        else:
            # Not the time in which this process was suspended or had no processor: the next heartbeat is due then.
            self._silence += min(now - self._looked, self._beat_s)
        self._looked = now
        limit = self._description.expiry_s * (1 - 1 / job_files.BEATS_PER_EXPIRY)
        if self._store.taken or (self.beats_in_folder and self._silence > limit):
            self._signal(signal.SIGKILL)
            return
        with contextlib.suppress(OSError):
            os.write(self._pipe, b".")

    def _listen(self) -> None:
        said = self._store.said
        if len(said) > self._last_size:
            self._last_size, self._heard = len(said), time.monotonic()
        if said.endswith(job_files.KILL):
            self._signal(signal.SIGKILL)
        elif said.endswith(job_files.STOP):
            self._interrupt()
        elif time.monotonic() - self._heard > self._description.unattended_s:
            print("no run follows this job any more: it writes a checkpoint and ends", flush=True)
            self._interrupt()

    def _interrupt(self) -> None:
        """Ask the stage for a checkpoint, unless it has been asked: a second interrupt would end it without one."""
        if self._expect_end():
            self._signal(signal.SIGINT)

    def _expect_end(self) -> bool:
        """Kill the stage if it has not written its checkpoint in time; return False if that was settled before."""
        if self._kill_at is not None:
            return False
        self._kill_at = time.monotonic() + self._description.grace_s
        return not self._stops

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._stage.pid, number)

    def _end(self, code: int) -> JobEnd:
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        messages = self._folder / job_files.MESSAGES
        return JobEnd(
            code=code,
            messages=messages.stat().st_size if messages.exists() else 0,
            peak_memory=peak,
            memory_limit=limits_of()[0].size,
            met_limit=kills_by_limit() > self._kills,
        )


def main() -> None:
    """Run the stage that the folder describes, and exit as it did."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tokenuq_ml.stages.cluster_job FOLDER")
    # A job that is stopped by Ray's dashboard gets them together with its stage, which they are meant for.
    stops: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stops.append(number))
    folder = Path(sys.argv[1])
    try:
        description = JobDescription.model_validate_json((folder / job_files.DESCRIPTION).read_text())
        (folder / job_files.BEAT).touch()
    except FileNotFoundError:
        sys.exit(job_files.not_seen(folder))
    replace_environment(job_files.take_environment(folder))
    if (code := INTERRUPTED if stops else wrong_code(description, folder)) is None:
        end = Job(folder, description, os.environ, stops).follow()
    else:
        end = JobEnd(code=code, messages=(folder / job_files.MESSAGES).stat().st_size)
    job_files.write_json(folder / job_files.ENDED, end)
    os._exit(end.code if end.code >= 0 else 128 - end.code)


def replace_environment(given: Mapping[str, str]) -> None:
    """Set the variables of a stage, in place of those that Ray sets."""
    for name in SET_BY_RAY:
        os.environ.pop(name, None)
    # Ranks on other nodes get the same.
    os.environ.update({**given, "TOKENUQ_JOB_VARIABLES": ",".join(given)})


def wrong_code(description: JobDescription, folder: Path) -> int | None:
    """Report that this node's code is not the launcher's; return the exit code, or None if it is."""
    if code_hash() == description.code:
        return None
    return report_refusal(
        f"the code of tokenuq_ml on the cluster, {Path(__file__).parents[1]} ({code_hash()}), is not that of this run "
        f"({description.code}): install the same version there, or name a checkout in TOKENUQ_RAY_WORKING_DIR",
        folder,
        BAD_INPUT,
    )


if __name__ == "__main__":
    main()
