"""What runs stages: the interface that `StageLauncher` uses, whatever is behind it.

A backend starts a stage. What it returns says whether the stage has ended and how, takes signals, and keeps the end of
its output. The stage writes its messages into the folder of the backend's `Slot`, where `StageLauncher` reads them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from tokenuq_ml.stages.request import AssetResult, StageRequest
from tokenuq_pipeline.runtime.child_output import ChildOutput
from tokenuq_pipeline.runtime.leases import Lease
from tokenuq_pipeline.runtime.message_file import MessageFile
from tokenuq_pipeline.runtime.stage_failure import MemoryWatch, StageFailure


@dataclass(frozen=True)
class Launch:
    """One stage to run, and for whom."""

    context: dg.AssetExecutionContext
    request: StageRequest
    staging: Path
    """The run's folder, which holds the empty folders of the outputs. It is deleted at the end of the step."""
    lease: Lease
    package: str
    """Package of the stage's program."""
    termination_timeout: float
    """Seconds that the stage has to write a checkpoint after SIGINT."""


class RunningStage(ABC):
    """A stage that a backend has started.

    Attributes:
        output: its stdout and stderr, and the end of both.
        memory: what it has had of memory, as far as the backend can tell.
        loss: the failure that the backend itself has found, in place of an exit code that says anything.
        poll_s: seconds between two looks at it.
    """

    output: ChildOutput
    memory: MemoryWatch
    loss: StageFailure | None = None
    poll_s: float = 0.05

    @abstractmethod
    def record(self) -> None:
        """Record in the lease what works under it, and let go of what only the start needed."""

    @abstractmethod
    def poll(self) -> int | None:
        """Return the exit code; None while the stage runs. Negative: the signal that killed it."""

    @abstractmethod
    def signal(self, number: int) -> None:
        """Send a signal to the stage and everything that it started. Does nothing once it has ended."""

    @abstractmethod
    def end(self) -> None:
        """Kill what is left of the stage, wait for its end, and copy the rest of its output."""

    def deliver(self, result: AssetResult) -> bool:
        """Let the request of the launch name the folders that hold the outputs of a result.

        Returns:
            Whether the request asks for the result.
        """
        return True


class Slot(ABC):
    """The place of one stage, held from before its start until after its end."""

    folder: Path
    """Holds the request, the messages and the output. The stage can write there."""
    messages: MessageFile

    @abstractmethod
    def start(self, environment: Mapping[str, str]) -> RunningStage:
        """Start the stage.

        Args:
            environment: variables of Dagster Pipes, in addition to what the backend passes on.
        """


class Backend(ABC):
    """Starts stages somewhere."""

    @abstractmethod
    def open(self, launch: Launch) -> AbstractContextManager[Slot]:
        """Return a place for a stage; waits while another stage works in the same folder of checkpoints."""

    def carries(self, request: StageRequest) -> bool:
        """Return whether the stage's own machine fetches what it reads, and sends its checkpoints and outputs."""
        return False
