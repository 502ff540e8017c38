"""Run a heavy stage that reports through Dagster Pipes: as a child process, or wherever another backend starts it.

The stage is stopped, with everything it started, when the step is cancelled. It is killed, without a checkpoint, when
the lease of its assets is lost. What depends on where it runs is in `launchers/`.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.failures import name_of
from tokenuq_ml.stages.request import AssetResult, StageRequest
from tokenuq_ml.stages.runner import PARENT_SILENT
from tokenuq_pipeline.runtime.interrupts import hold_interrupts
from tokenuq_pipeline.runtime.launchers.base import Backend, Launch, RunningStage
from tokenuq_pipeline.runtime.launchers.local import LocalBackend
from tokenuq_pipeline.runtime.leases import Lease, LeaseLost
from tokenuq_pipeline.runtime.message_file import MessageFile
from tokenuq_pipeline.runtime.stage_failure import StageFailure, failure_of

__all__ = ["StageFailure", "StageLauncher"]


@dataclass(frozen=True)
class StageLauncher:
    """Runs the program `<package>.<entrypoint>` of a stage.

    No `ConfigurableResource`: then whoever launches a run from the UI could name the package whose code runs.
    """

    package: str = "tokenuq_ml.stages"
    termination_timeout: float = 30.0
    """Seconds that a stage has to write a checkpoint after SIGINT."""
    backend: Backend = field(default_factory=LocalBackend)

    def carries(self, request: StageRequest) -> bool:
        """Return whether the stage's own machine fetches what it reads, and sends its checkpoints and outputs."""
        with _refused():
            return self.backend.carries(request)

    def run(
        self, context: dg.AssetExecutionContext, request: StageRequest, staging: Path, lease: Lease
    ) -> Iterator[AssetResult]:
        """Start a stage and yield each result as the stage reports it.

        Closing the iterator, or any exception, stops the stage: SIGINT, and SIGKILL after `termination_timeout`.

        Args:
            context: of the step; receives the stage's log messages.
            request: what the stage makes.
            staging: a folder for the request, the messages and the output.
            lease: of the assets.

        Raises:
            StageFailure: the stage ended with an exit code other than 0.
            LeaseLost: another process has taken over.
        """
        launch = Launch(context, request, staging, lease, self.package, self.termination_timeout)
        with (
            _refused(),
            self.backend.open(launch) as slot,
            dg.open_pipes_session(context, dg.PipesEnvContextInjector(), slot.messages) as session,
        ):
            stage, refusals = slot.start(session.get_bootstrap_env_vars()), []
            try:
                stage.record()
                for message in _follow(stage, slot.messages, lease):
                    if message["kind"] != "result":
                        refusals.append(message["message"])
                    elif stage.deliver(result := AssetResult(**message["result"])):
                        yield result
            finally:
                _stop(launch, stage, slot.messages)
            if stage.loss is not None:
                raise stage.loss from None
            code = stage.poll()
            if code == PARENT_SILENT:
                raise StageFailure(_silence(request, lease), crashed=True)
            if code:
                refusal = refusals[-1] if refusals else None
                raise failure_of(request, slot.folder, code, refusal, stage.output, stage.memory) from None


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Raise what is wrong with the configuration or the environment as the failure of the stage."""
    try:
        yield
    except InputError as error:
        raise StageFailure(str(error)) from None


def _stop(launch: Launch, stage: RunningStage, messages: MessageFile) -> None:
    """Stop the stage and everything that it started. A second interrupt meanwhile kills at once."""
    try:
        if stage.poll() is None and not launch.lease.lost:
            stage.signal(signal.SIGINT)
            with hold_interrupts():
                launch.context.log.info(
                    f"stopping; the stage has {launch.termination_timeout:.0f} s to write a checkpoint"
                )
            deadline = time.monotonic() + launch.termination_timeout
            while stage.poll() is None and time.monotonic() < deadline and not launch.lease.lost:
                messages.drain()
                time.sleep(stage.poll_s)
    finally:
        stage.end()
        messages.drain()


def _follow(stage: RunningStage, messages: MessageFile, lease: Lease) -> Iterator[dict[str, Any]]:
    """Yield the stage's custom messages until it ends; its logs and output are passed on meanwhile.

    Raises:
        LeaseLost: another process has taken the lease.
    """
    while True:
        if lease.lost:
            raise LeaseLost(lease.loss)
        # Before reading: then what it wrote last is read for sure.
        ended = stage.poll() is not None
        stage.memory.look()
        yield from messages.pump()
        if ended:
            return
        time.sleep(stage.poll_s)


def _silence(request: StageRequest, lease: Lease) -> str:
    return (
        f"{name_of(request)} has stopped because this run had not answered for {lease.expiry_s / 2:.0f} s, "
        "as when it is suspended; a training resumes from its checkpoint"
    )
