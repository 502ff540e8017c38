"""One rank of a stage as a child process of a worker of Ray Train; what the ranks and the stage's job tell each other.

They do so by files in a folder next to the request, on the shared file system, since a lost node takes its actors with
it. Each start of the group has a folder of its own.
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

from pydantic import BaseModel

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.stages.job_files import not_seen
from tokenuq_ml.stages.parent_watch import ORPHAN_GRACE_S
from tokenuq_ml.stages.provenance import code_hash
from tokenuq_ml.stages.rank_failures import ERROR_FILE

INTERRUPT = "interrupt"
"""File of the folder of all starts: every rank is interrupted, and they write one checkpoint."""
START = "TOKENUQ_RANKS_START"
"""Environment variable of a worker: name of the folder of this start."""
POLL_S, LOOK_S = 0.1, 0.5


class RankEnd(BaseModel):
    """How a rank ended."""

    rank: int
    code: int
    """Exit code, or minus a signal."""


@dataclass(frozen=True)
class RankProgram:
    """What each rank runs."""

    module: str
    request_file: str
    folder: Path
    """Of all starts."""
    environment: dict[str, str]
    """Of the stage. Travels with the function, where nobody is shown it."""
    code: str
    """Hash of the job's `tokenuq_ml`."""

    def __call__(self) -> None:
        """Run the rank of this worker until it ends, or another one has failed. Ray Train calls this in each worker."""
        from ray import train

        context = train.get_context()
        ranks = {
            "RANK": context.get_world_rank(),
            "WORLD_SIZE": context.get_world_size(),
            "LOCAL_RANK": context.get_local_rank(),
            "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        }
        self.run({name: str(value) for name, value in ranks.items()})

    def run(self, ranks: dict[str, str]) -> None:
        """Run one rank.

        Args:
            ranks: torch's variables of the rank.
        """
        folder, rank = self.folder / os.environ[START], int(ranks["RANK"])
        if not Path(self.request_file).is_file():
            raise RuntimeError(not_seen(self.request_file))
        folder.mkdir(parents=True, exist_ok=True)
        root = Path(__file__).parents[2]
        if code_hash() != self.code:
            raise RuntimeError(f"{root}: the code of a node is not that of the stage: {code_hash()}, not {self.code}")
        environment = {**os.environ, **self.environment, **ranks, ERROR_FILE: str(folder / f"failure{rank}.json")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH")]))
        with (
            open(folder / f"rank{rank}.out", "wb") as out,
            open(folder / f"rank{rank}.err", "wb") as err,
            _unblocked_interrupts(),
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", self.module, self.request_file],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            code = _follow(process, folder)
        finally:
            _signal(process, signal.SIGKILL)
        with atomic_write(folder / f"end{rank}.json") as file:
            file.write(RankEnd(rank=rank, code=code).model_dump_json().encode())


def ends_in(folder: Path) -> list[RankEnd]:
    """Return how those ranks of a start ended that have."""
    return [RankEnd.model_validate_json(path.read_text()) for path in sorted(folder.glob("end*.json"))]


def _follow(process: subprocess.Popen[bytes], folder: Path) -> int:
    """Wait for a rank, and return how it ended. It is stopped when all are, or when another one has failed."""
    stop_at, next_look = float("inf"), 0.0
    while (code := process.poll()) is None:
        now = time.monotonic()
        if now >= next_look:
            next_look = now + LOOK_S
            interrupted = (folder.parent / INTERRUPT).exists()
            if stop_at == float("inf") and (interrupted or any(end.code for end in ends_in(folder))):
                stop_at = now + ORPHAN_GRACE_S
                _signal(process, signal.SIGINT if interrupted else signal.SIGTERM)
        if now >= stop_at:
            _signal(process, signal.SIGKILL)
        time.sleep(POLL_S)
    return code


@contextlib.contextmanager
def _unblocked_interrupts() -> Iterator[None]:
    """Let a child that is started inside receive SIGINT, which the threads of Ray's workers block."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
