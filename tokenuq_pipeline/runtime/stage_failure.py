"""The failure of a stage, from how its child process ended: in words, and whether a retry may help."""

import signal
import time
from pathlib import Path
from typing import Any

import dagster as dg

from tokenuq_ml.disk import full_disk
from tokenuq_ml.out_of_memory import kills_by_limit, limits_of, memory_sentence, ran_out
from tokenuq_ml.redaction import redacted
from tokenuq_ml.stages.failures import NO_MEMORY, NO_SPACE, name_of
from tokenuq_ml.stages.request import StageRequest
from tokenuq_ml.stages.runner import BAD_INPUT, INTERRUPTED
from tokenuq_pipeline.runtime.child_output import ChildOutput
from tokenuq_pipeline.runtime.markdown import fenced
from tokenuq_pipeline.runtime.processes import peak_memory

LOOK_S = 0.25
"""Seconds between two looks at the memory of a child."""
LAST_LINES = 5
"""Lines at the end of stderr in which the cause of a failure is looked for."""
OWN_SHARE = 0.5
"""Share of a memory limit from which a killed stage is taken to have met it by itself, so that a retry would too."""


class StageFailure(dg.Failure):
    """A stage that did not finish.

    Attributes:
        crashed: the input is not known to be at fault, so a retry may succeed.
    """

    def __init__(self, description: str, crashed: bool = False, **metadata: Any) -> None:
        super().__init__(description=redacted(description), metadata=metadata, allow_retries=False)
        self.crashed = crashed


class MemoryWatch:
    """What a child process has had of memory, which nobody can ask after its end.

    Attributes:
        peak: in bytes; None as long as it is not known.
    """

    def __init__(self, pid: int):
        self.peak: int | None = None
        self._pid, self._kills, self._last = pid, kills_by_limit(), 0.0

    def look(self) -> None:
        """Note the peak so far, at most every quarter of a second."""
        if time.monotonic() - self._last >= LOOK_S:
            self._last = time.monotonic()
            # The sum over processes of which one has ended is smaller.
            self.peak = max(peak_memory(self._pid) or 0, self.peak or 0) or None

    def was_killed(self) -> bool:
        """Return whether the system has killed a process of our control group for its memory meanwhile."""
        return kills_by_limit() > self._kills

    def is_own(self) -> bool:
        """Return whether the child alone came near its smallest limit."""
        return self.peak is not None and self.peak >= OWN_SHARE * limits_of()[0].size


def failure_of(
    request: StageRequest, staging: Path, code: int, refusal: str | None, output: ChildOutput, memory: MemoryWatch
) -> StageFailure:
    """Return the failure of a child.

    A full disk and memory that ran out are not retried: the same disk and the same limit would be met again.

    Args:
        request: of the stage.
        staging: where the child wrote.
        code: how it ended, not 0.
        refusal: its last sentence about its input, a disk or memory, if it sent one.
        output: what it wrote.
        memory: what it had.
    """
    if refusal is not None:
        return StageFailure(refusal)
    if code in (INTERRUPTED, -signal.SIGINT):
        return StageFailure(f"{name_of(request)} was interrupted")
    tail, end = output.tail(), output.end_of_stderr()
    stderr = dg.MetadataValue.md(fenced(tail))
    known = _known(request, staging, code, end, memory)
    if known is not None:
        sentence, crashed = known
        return StageFailure(sentence, crashed, stderr=stderr)
    reason = f"{name_of(request)} ended with exit code {code}"
    if code == BAD_INPUT:
        reason = f"{name_of(request)} rejected its input"
    elif code < 0:
        reason = f"{name_of(request)} was killed ({signal.Signals(-code).name})"
    last = next((line for line in reversed(tail.splitlines()) if line.strip()), "")
    return StageFailure(f"{reason}: {last}" if last else reason, code != BAD_INPUT, stderr=stderr)


def _known(
    request: StageRequest, staging: Path, code: int, stderr: str, memory: MemoryWatch
) -> tuple[str, bool] | None:
    """Return the sentence for a full disk or a lack of memory, and whether a retry may help; None for other causes."""
    # Only how it ended: a library may have warned before of a cache that found no room.
    last = "\n".join([line for line in stderr.splitlines() if line.strip()][-LAST_LINES:])
    words = "No space left on device" if code == NO_SPACE else last
    if code in (NO_SPACE, -signal.SIGBUS) or code > 0 or code == -signal.SIGABRT:
        full = full_disk(words, staging, request.work_dir)
        if full is not None:
            return f"{name_of(request)}: {full}", False
    said = memory_sentence(name_of(request), request.entrypoint, last, memory.peak)
    if code == -signal.SIGKILL:
        if memory.was_killed():
            return f"{said} (the system killed it)", not memory.is_own()
        # Without a limit the system kills the largest process, and others may have needed the memory.
        return f"{name_of(request)} was killed (SIGKILL), most likely because memory ran out: {said}", True
    # A backtrace of Rust or C++ stands after its words.
    if code == NO_MEMORY or ran_out(last) or (code == -signal.SIGABRT and ran_out(stderr)):
        return said, False
    return None
