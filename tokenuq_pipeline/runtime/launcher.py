"""Run a heavy stage in a child process that reports through Dagster Pipes.

The child is stopped, with everything it started, when the step is cancelled or this process dies. It is killed, without
a checkpoint, when the lease of its assets is lost, and stops by itself when this process is suspended for so long that
it may lose the lease (`tokenuq_ml/stages/parent_watch.py`). To run stages elsewhere (Ray, Slurm), write a resource with
the same `run`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from tokenuq_ml.stages.failures import name_of, write_reserve
from tokenuq_ml.stages.parent_watch import LEASE_SECONDS, PARENT_PIPE
from tokenuq_ml.stages.request import AssetResult, StageRequest
from tokenuq_ml.stages.runner import PARENT_SILENT
from tokenuq_pipeline.runtime.child_output import ChildOutput
from tokenuq_pipeline.runtime.dagster_settings import POSTGRES_VARIABLE
from tokenuq_pipeline.runtime.folder_lock import lock_folder
from tokenuq_pipeline.runtime.interrupts import hold_interrupts
from tokenuq_pipeline.runtime.leases import Lease, LeaseLost
from tokenuq_pipeline.runtime.message_file import MessageFile
from tokenuq_pipeline.runtime.processes import process_name
from tokenuq_pipeline.runtime.stage_failure import MemoryWatch, StageFailure, failure_of

POLL_S = 0.05

__all__ = ["StageFailure", "StageLauncher"]


@dataclass(frozen=True)
class _Child:
    """A running child process with what it reports."""

    process: subprocess.Popen[bytes]
    messages: MessageFile
    output: ChildOutput
    memory: MemoryWatch
    lease: Lease

    def signal_group(self, number: int) -> None:
        """Send a signal to the child and everything that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


@dataclass(frozen=True)
class StageLauncher:
    """Runs `python -m <package>.<entrypoint> request.json` as a child of this process.

    No `ConfigurableResource`: then whoever launches a run from the UI could name the package whose code runs.
    """

    package: str = "tokenuq_ml.stages"
    termination_timeout: float = 30.0
    """Seconds that a child has to write a checkpoint after SIGINT."""

    def run(
        self, context: dg.AssetExecutionContext, request: StageRequest, staging: Path, lease: Lease
    ) -> Iterator[AssetResult]:
        """Start a stage and yield each result as the child reports it.

        Closing the iterator, or any exception, stops the child: SIGINT to its process group, and SIGKILL after
        `termination_timeout`.

        Args:
            context: of the step; receives the child's log messages.
            request: what the child makes.
            staging: a folder for the request, the messages and the output.
            lease: of the assets.

        Raises:
            StageFailure: the child ended with an exit code other than 0.
            LeaseLost: another process has taken over.
        """
        request_file = staging / "request.json"
        request.write(request_file)
        write_reserve(staging)
        messages = MessageFile(staging / "messages.jsonl")
        with (
            lock_folder(Path(request.work_dir), context.log.info) as lock,
            _parent_pipe() as (read_end, write_end),
            lease.confirmed_to(write_end),
            dg.open_pipes_session(context, dg.PipesEnvContextInjector(), messages) as session,
            ChildOutput(staging) as output,
        ):
            environment = {
                # Stages, and the code of a user's Trainer, do not need the address of Dagster's records.
                **{name: value for name, value in os.environ.items() if name != POSTGRES_VARIABLE},
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONUNBUFFERED": "1",
                **session.get_bootstrap_env_vars(),
                PARENT_PIPE: str(read_end),
                LEASE_SECONDS: str(lease.expiry_s),
            }
            # In its own session: Ctrl-C in a terminal reaches only this process, which then asks the child to stop.
            process = subprocess.Popen(
                [sys.executable, "-m", f"{self.package}.{request.entrypoint}", str(request_file)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output.stdout,
                stderr=output.stderr,
                start_new_session=True,
                pass_fds=[read_end, lock.descriptor],
            )
            child, refusals = _Child(process, messages, output, MemoryWatch(process.pid), lease), []
            try:
                lock.leave_to_child()
                lease.note_child(process_name(process.pid))
                for message in _follow(child):
                    if message["kind"] == "result":
                        yield AssetResult(**message["result"])
                    else:
                        refusals.append(message["message"])
            finally:
                self._stop(context, child)
            if process.returncode == PARENT_SILENT:
                raise StageFailure(_silence(request, lease), crashed=True)
            if process.returncode != 0:
                refusal = refusals[-1] if refusals else None
                raise failure_of(request, staging, process.returncode, refusal, output, child.memory) from None

    def _stop(self, context: dg.AssetExecutionContext, child: _Child) -> None:
        """Stop the child and everything that it started. A second interrupt meanwhile kills at once."""
        try:
            if child.process.poll() is None and not child.lease.lost:
                child.signal_group(signal.SIGINT)
                with hold_interrupts():
                    context.log.info(f"stopping; the stage has {self.termination_timeout:.0f} s to write a checkpoint")
                deadline = time.monotonic() + self.termination_timeout
                while child.process.poll() is None and time.monotonic() < deadline and not child.lease.lost:
                    child.messages.drain()
                    time.sleep(POLL_S)
        finally:
            # After a clean end too: processes that the child started must not outlive it.
            child.signal_group(signal.SIGKILL)
            child.process.wait()
            child.messages.drain()
            child.output.finish()


def _follow(child: _Child) -> Iterator[dict[str, Any]]:
    """Yield the child's custom messages until it ends; its logs and output are passed on meanwhile.

    Raises:
        LeaseLost: another process has taken the lease.
    """
    while True:
        if child.lease.lost:
            raise LeaseLost(child.lease.loss)
        # Before reading: then what it wrote last is read for sure.
        ended = child.process.poll() is not None
        child.memory.look()
        yield from child.messages.pump()
        if ended:
            return
        time.sleep(POLL_S)


def _silence(request: StageRequest, lease: Lease) -> str:
    return (
        f"{name_of(request)} has stopped because this run had not answered for {lease.expiry_s / 2:.0f} s, "
        "as when it is suspended; a training resumes from its checkpoint"
    )


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
