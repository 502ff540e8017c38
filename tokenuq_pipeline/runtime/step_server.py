"""Imported first by the process that the steps of a run are forked from. Does nothing in any other process.

It leaves the terminal's process group, and builds the run's job.

Ctrl-C reaches every process of the terminal's group. The run's own process interrupts its steps; a second interrupt,
from the terminal, would kill their stages before they have written a checkpoint.

Dagster builds the job once per process, which takes longer the more assets a study has: 20 s for 1,400 of them, in
every step. Forks find what their parent has built.
"""

import contextlib
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JOB = "TOKENUQ_STEP_JOB"
"""Environment variable: the file that holds the job of the run, pickled."""


def is_fork_server(arguments: list[str]) -> bool:
    """Return whether a command line is that of the server of `multiprocessing`, and of what is forked from it."""
    return any("multiprocessing.forkserver" in argument for argument in arguments)


@contextlib.contextmanager
def handing_over(job: Any) -> Iterator[None]:
    """Let the process that steps are forked from build a job, if it is started inside the context.

    It lives as long as this process: steps of a later run in it build their job themselves.

    Args:
        job: a `ReconstructableJob`.
    """
    with tempfile.TemporaryDirectory(prefix="tokenuq-job-") as folder:
        path = Path(folder) / "job.pickle"
        path.write_bytes(pickle.dumps(job))
        os.environ[JOB] = str(path)
        try:
            yield
        finally:
            os.environ.pop(JOB, None)


def build_job() -> None:
    """Build the job that is handed over. Steps say what is wrong with one that cannot be built."""
    path = os.environ.pop(JOB, None)
    if path is not None:
        with contextlib.suppress(Exception):
            _keep(pickle.loads(Path(path).read_bytes()))


def _keep(job: Any) -> None:
    """Let a `ReconstructableJob` find in this process, and in its forks, the definitions that are built now.

    Dagster's own caches (`functools.lru_cache`) do not find them there: a job is pickled with its hash, which the run's
    process has computed with another seed.
    """
    for method in ("get_repository_definition", "get_definition"):
        _remember(type(job), method, job)


def _remember(kind: Any, method: str, job: Any) -> None:
    found, build = getattr(job, method)(), getattr(kind, method)
    setattr(kind, method, lambda other: found if tuple.__eq__(other, job) else build(other))


if is_fork_server(sys.orig_argv):
    os.setpgid(0, 0)
    build_job()
