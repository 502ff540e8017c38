"""A stage that runs as a Ray job, as the job's folder and the cluster tell of it.

What the folder says counts: Ray does not know how a stopped job ended, and knows no job once its head node has
restarted. Ray says why a job has not started.
"""

import contextlib
import signal
import threading
import time

from tokenuq_ml.redaction import redacted
from tokenuq_ml.stages import job_files
from tokenuq_ml.stages.failures import name_of
from tokenuq_ml.stages.job_files import JobEnd
from tokenuq_ml.stages.request import AssetResult
from tokenuq_ml.stages.runner import INTERRUPTED
from tokenuq_pipeline.runtime.child_output import ChildOutput
from tokenuq_pipeline.runtime.launchers.base import Launch, RunningStage
from tokenuq_pipeline.runtime.launchers.job_folders import JobFolder
from tokenuq_pipeline.runtime.launchers.ray_cluster import PERMANENT, ClusterAway, JobState, RayCluster
from tokenuq_pipeline.runtime.message_file import MessageFile
from tokenuq_pipeline.runtime.stage_failure import OWN_SHARE, MemoryWatch, StageFailure

POLL_S = 0.25
LOOK_S = 1.0
"""Seconds between two questions to the cluster."""
LATE_S = 10.0
"""How late a network file system may show what a job wrote last."""
TOLD_S = 10.0
"""How long a job waits for its resources before the run says so."""
LOST = 70
"""Exit code of a stage of which nothing is known any more."""
TAG = "tokenuq/ray_job"
"""Beginning of the tags of a run that name the jobs of its steps."""


class _JobMemory(MemoryWatch):
    """What the job has said of its memory at its end."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self._end: JobEnd | None = None

    def note(self, end: JobEnd) -> None:
        self.peak, self._end = end.peak_memory, end

    def look(self) -> None:
        pass

    def was_killed(self) -> bool:
        return self._end is not None and self._end.met_limit

    def is_own(self) -> bool:
        limit = self._end.memory_limit if self._end else None
        return self.peak is not None and limit is not None and self.peak >= OWN_SHARE * limit


class RayStage(RunningStage):
    """A job, as its folder and the cluster tell of it."""

    poll_s = POLL_S

    def __init__(self, cluster: RayCluster, launch: Launch, job: JobFolder, output: ChildOutput, messages: MessageFile):
        self._cluster, self._launch, self._job, self._messages = cluster, launch, job, messages
        self.output = output
        self.memory = self._memory = _JobMemory()
        request = job.request()
        self._outputs = {stage: asset.outputs for stage, asset in request.assets.items()} if request else {}
        self._code: int | None = None
        self._never_starts = False
        self._state, self._answered, self._started = JobState("PENDING"), time.monotonic(), time.monotonic()
        self._since: dict[str, float] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="ray-job-state").start()

    @property
    def is_over(self) -> bool:
        """Whether the job has ended for sure, or never starts, so that nothing writes into its folder."""
        return self._code is not None and (self._code != LOST or self._never_starts)

    def record(self) -> None:
        """Name the job in the tags of the run, for people. The store names it for the next run."""
        context = self._launch.context
        tags = {f"{TAG}/{context.op_execution_context.op.name}"[:63]: self._job.id}
        context.instance.add_run_tags(context.run_id, tags)

    def poll(self) -> int | None:
        """Return the exit code that the job has left; None while it runs, or nothing can be known."""
        if self._code is None:
            # A file server that is away: nothing is known, and nothing is decided.
            with contextlib.suppress(OSError):
                self._code = self._look()
        return self._code

    def _look(self) -> int | None:
        end = self._job.end()
        if end is not None:
            if self._messages.position < end.messages and not self._lasts("unread", LATE_S):
                return None
            self._memory.note(end)
            return end.code
        state, silence = self._state, self._job.silence()
        expiry_s = self._launch.lease.expiry_s
        if silence is None:
            return self._look_at_waiting(state)
        is_away = time.monotonic() - self._answered > LATE_S
        if state.has_ended and self._lasts("ended", LATE_S):
            return self._lose(f"the Ray job {self._job.id} has ended without a word: {_last_line(state.message)}")
        if silence > (expiry_s if is_away else 2 * expiry_s):
            return self._lose(f"the Ray job {self._job.id} has not been heard of for {silence:.0f} s")
        return None

    def _look_at_waiting(self, state: JobState) -> int | None:
        """Return the exit code of a job that has not started; None while it may start."""
        if state.status == "STOPPED":
            return INTERRUPTED
        if state.has_ended and self._lasts("ended", LATE_S):
            crashed, self._never_starts = state.error_type not in PERMANENT, True
            return self._lose(f"the Ray job {self._job.id} has not started: {_last_line(state.message)}", crashed)
        if state.status == "PENDING" and self._lasts("waiting", TOLD_S) and "told" not in self._since:
            self._since["told"] = 0.0
            self._launch.context.log.info(f"the Ray job {self._job.id} waits: {_last_line(state.message)}")
        return None

    def _lose(self, sentence: str, crashed: bool = True) -> int:
        self.loss = StageFailure(f"{name_of(self._launch.request)}: {sentence}", crashed)
        return LOST

    def _lasts(self, what: str, seconds: float) -> bool:
        """Return whether this has been asked for so long. It is only asked while it is so."""
        return time.monotonic() - self._since.setdefault(what, time.monotonic()) > seconds

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            with contextlib.suppress(ClusterAway):
                self._state = self._cluster.state(self._job.id)
                self._answered = time.monotonic()

    def signal(self, number: int) -> None:
        """Interrupt a job that has started through its folder; stop one that waits."""
        if number == signal.SIGINT and self._job.silence() is not None:
            job_files.say(self._job.path, job_files.STOP)
        else:
            with contextlib.suppress(ClusterAway):
                self._cluster.stop(self._job.id)

    def end(self) -> None:
        """Kill the job unless another run has taken it over, and copy the rest of its output."""
        try:
            if not self._launch.lease.lost and self.poll() is None:
                with contextlib.suppress(OSError):
                    job_files.say(self._job.path, job_files.KILL)
                with contextlib.suppress(ClusterAway):
                    self._cluster.stop(self._job.id)
                deadline = time.monotonic() + LATE_S
                while self.poll() is None and time.monotonic() < deadline:
                    self._messages.drain()
                    time.sleep(POLL_S)
        finally:
            self._ended.set()
            self.output.finish()

    def deliver(self, result: AssetResult) -> bool:
        """Let the request name the folders in which the job has written a result; False if it asks for another one."""
        asset = self._launch.request.assets.get(result.stage)
        if asset is None:
            # An earlier run has published it.
            return False
        # Published from where the job wrote them: if this run dies now, the next one finds them there.
        asset.outputs = self._outputs[result.stage]
        return True


def _last_line(message: str) -> str:
    lines = [line.strip() for line in redacted(message).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"
