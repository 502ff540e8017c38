"""The folder of a stage that runs as a job of a cluster: what the launcher and the job tell each other.

It lies in the stage's folder of checkpoints, on the shared file system, so that a job and its results outlast the run
that has started it. The launcher and the job may see a change late, and each may die at any moment.

| file | written by | content |
|---|---|---|
| `job.json`, `request.json` | launcher | what to run |
| `environment.json` | launcher | variables of the stage; readable for its owner only, deleted by the job as it starts |
| `launcher` | launcher | one byte per heartbeat for which it holds the lease; the last one may be `STOP` or `KILL` |
| `beat` | job | its modification time is the job's heartbeat |
| `messages.jsonl`, `stdout`, `stderr` | stage | what it reports |
| `outputs/` | stage | the outputs of each asset |
| `ended.json` | job | how the stage ended |
"""

import json
import os
from pathlib import Path

from pydantic import BaseModel

from tokenuq_ml.atomic_files import atomic_write

JOBS = "jobs"
"""Folder of jobs in a folder of checkpoints: one folder per job, named by its id."""
DESCRIPTION, REQUEST, ENVIRONMENT, LAUNCHER = "job.json", "request.json", "environment.json", "launcher"
BEAT, MESSAGES, STDOUT, STDERR, OUTPUTS, ENDED = "beat", "messages.jsonl", "stdout", "stderr", "outputs", "ended.json"
ALIVE, STOP, KILL = b".", b"S", b"K"
BEATS_PER_EXPIRY = 6


class JobDescription(BaseModel):
    """What a job runs, and how long it works without news."""

    arguments: list[str]
    """Of Python, such as `-m tokenuq_ml.stages.train_teacher <folder>/request.json`."""
    code: str
    """Hash of the launcher's `tokenuq_ml`, which has to be the job's."""
    expiry_s: float
    """Seconds without heartbeat of the job after which others take it for dead. It ends before."""
    unattended_s: float
    """Seconds without a byte of a launcher after which the job writes a checkpoint and ends."""
    grace_s: float
    """Seconds that the stage has to write a checkpoint."""
    remote: str = ""
    """Where the job was submitted."""


class JobEnd(BaseModel):
    """How the stage of a job ended."""

    code: int
    """Exit code. Negative: the signal that killed it."""
    messages: int = 0
    """Size of the message file. A reader that has not come so far has not seen everything."""
    peak_memory: int | None = None
    """In bytes."""
    memory_limit: int | None = None
    """The smallest limit that it had."""
    met_limit: bool = False
    """The system has killed a process of the job's control group for its memory."""


def not_seen(path: Path | str) -> str:
    """Return that this node does not see a path which the launcher or the job has written, in a sentence."""
    return (
        f"this node does not see {path}: all nodes have to share the store, or the folder TOKENUQ_CACHE of a store in "
        "a bucket, under the same path"
    )


def write_json(path: Path, content: BaseModel) -> None:
    """Write a file of the folder, complete or not at all."""
    with atomic_write(path) as file:
        file.write(content.model_dump_json().encode())


def read_end(folder: Path) -> JobEnd | None:
    """Return how the stage of a job ended; None as long as it is not known."""
    try:
        return JobEnd.model_validate_json((folder / ENDED).read_text())
    except FileNotFoundError:
        return None


def write_environment(folder: Path, environment: dict[str, str]) -> None:
    """Write the variables of a stage, some of which are secret, for the eyes of this user."""
    descriptor = os.open(folder / ENVIRONMENT, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(environment, file)


def take_environment(folder: Path) -> dict[str, str]:
    """Return the variables of a stage, and delete their file."""
    path = folder / ENVIRONMENT
    environment = json.loads(path.read_text())
    path.unlink()
    return environment


def say(folder: Path, word: bytes) -> None:
    """Append a word of the launcher. Opened each time: a network file system then shows it to the job."""
    descriptor = os.open(folder / LAUNCHER, os.O_APPEND | os.O_WRONLY)
    try:
        os.write(descriptor, word)
    finally:
        os.close(descriptor)
