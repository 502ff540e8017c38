"""Stages as child processes of this one.

A child is stopped, with everything it started, when this process dies, and stops by itself when this process is
suspended for so long that it may lose the lease (`tokenuq_ml/stages/parent_watch.py`).
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenuq_ml.process_group import RANK_VARIABLES
from tokenuq_ml.stages.failures import write_reserve
from tokenuq_ml.stages.parent_watch import LEASE_SECONDS, PARENT_PIPE
from tokenuq_ml.stages.request import PARALLEL_STAGES
from tokenuq_ml.stages.thread_waits import thread_waits
from tokenuq_pipeline.runtime.bucket_jobs import bucket_jobs
from tokenuq_pipeline.runtime.child_output import ChildOutput
from tokenuq_pipeline.runtime.dagster_settings import POSTGRES_VARIABLE
from tokenuq_pipeline.runtime.folder_lock import FolderLock, lock_folder
from tokenuq_pipeline.runtime.launch_command import processes_of, stage_command
from tokenuq_pipeline.runtime.launchers.base import Backend, Launch, RunningStage, Slot
from tokenuq_pipeline.runtime.launchers.job_folders import end_jobs
from tokenuq_pipeline.runtime.launchers.local_gpus import GpuReservation, reserved_gpus
from tokenuq_pipeline.runtime.launchers.preloaded import ForkedStage, start_forked
from tokenuq_pipeline.runtime.message_file import MessageFile
from tokenuq_pipeline.runtime.processes import process_name
from tokenuq_pipeline.runtime.stage_failure import MemoryWatch

REQUEST, MESSAGES = "request.json", "messages.jsonl"


@dataclass(frozen=True)
class LocalBackend(Backend):
    """Runs `python -m <package>.<entrypoint> request.json`, or torchrun of it, as a child of this process."""

    models: int | None = None
    """How many stages with a model run at once; they share this machine's GPUs."""

    @contextlib.contextmanager
    def open(self, launch: Launch) -> Iterator[Slot]:
        """Write the request into the staging folder, and lock the folder of checkpoints for the child."""
        request, say = launch.request, launch.context.log.info
        request.write(launch.staging / REQUEST)
        write_reserve(launch.staging)
        command = stage_command(launch.package, request, launch.staging / REQUEST, processes_of(request))
        with (
            lock_folder(Path(request.work_dir), say) as lock,
            _parent_pipe() as (read_end, write_end),
            launch.lease.confirmed_to(write_end),
            ChildOutput(launch.staging) as output,
        ):
            # Of a run that had a cluster.
            with bucket_jobs(Path(request.work_dir)):
                end_jobs(Path(request.work_dir), say)
            with reserved_gpus(request, self.models, say) as gpus:
                yield _LocalSlot(launch, command, output, lock, gpus, read_end)


class _LocalSlot(Slot):
    def __init__(
        self,
        launch: Launch,
        command: list[str],
        output: ChildOutput,
        lock: FolderLock,
        gpus: GpuReservation,
        read_end: int,
    ):
        self.folder, self.messages = launch.staging, MessageFile(launch.staging / MESSAGES)
        self._command, self._gpus = command, gpus
        self._launch, self._output, self._lock, self._read_end = launch, output, lock, read_end

    def start(self, environment: Mapping[str, str]) -> "_Child":
        base = stage_environment()
        whole = {**base, **self._gpus.variables, **environment, LEASE_SECONDS: str(self._launch.lease.expiry_s)}
        process = self._forked(whole, base) or self._started(whole)
        return _Child(self._launch, process, self._output, self._lock, self._gpus)

    def _forked(self, environment: dict[str, str], base: dict[str, str]) -> ForkedStage | None:
        """Start it as a fork, if it uses what the preloaded process has imported."""
        if self._launch.request.entrypoint not in PARALLEL_STAGES or self._gpus.variables:
            return None
        streams = [stream.fileno() for stream in (self._output.stdout, self._output.stderr)]
        return start_forked(self._command, environment, base, [*streams, self._read_end, self._lock.descriptor])

    def _started(self, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        # In its own session: Ctrl-C in a terminal reaches only this process, which then asks the child to stop.
        return subprocess.Popen(
            self._command,
            env={**environment, PARENT_PIPE: str(self._read_end)},
            stdin=subprocess.DEVNULL,
            stdout=self._output.stdout,
            stderr=self._output.stderr,
            start_new_session=True,
            pass_fds=[self._read_end, self._lock.descriptor, *self._gpus.descriptors],
        )


def stage_environment() -> dict[str, str]:
    """Return what every stage has in its environment."""
    # Stages, and the code of a user's Trainer, do not need the address of Dagster's records.
    kept = {name: value for name, value in os.environ.items() if name not in {POSTGRES_VARIABLE, *RANK_VARIABLES}}
    return {**kept, **thread_waits(kept), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


class _Child(RunningStage):
    """A child process, which leads its own process group."""

    def __init__(
        self,
        launch: Launch,
        process: subprocess.Popen[bytes] | ForkedStage,
        output: ChildOutput,
        lock: FolderLock,
        gpus: GpuReservation,
    ):
        self._launch, self._process, self._lock, self._gpus = launch, process, lock, gpus
        self.output, self.memory = output, MemoryWatch(process.pid)

    def record(self) -> None:
        self._lock.leave_to_child()
        self._gpus.leave_to_child()
        self._launch.lease.note_child(process_name(self._process.pid))

    def poll(self) -> int | None:
        return self._process.poll()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def end(self) -> None:
        # After a clean end too: processes that the child started must not outlive it.
        self.signal(signal.SIGKILL)
        self._process.wait()
        self.output.finish()


@contextlib.contextmanager
def _parent_pipe() -> Iterator[tuple[int, int]]:
    """Open a pipe and yield both ends. At the read end the child sees the end of file when this process dies.

    The write end is close-on-exec, so no other process holds it. Writing to it never waits.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        yield read_end, write_end
    finally:
        os.close(read_end)
        os.close(write_end)
