"""One run in one tracker: what all trackers share. `file_trackers.py` and `server_trackers.py` have one class each.

transformers' own callbacks log the rows and settings. The classes here open the run before, so that a resumed training
continues it, and close it.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from transformers import TrainerCallback, TrainerControl, TrainerState

Status = Literal["FINISHED", "KILLED", "FAILED"]


@dataclass(frozen=True)
class RunIdentity:
    """What trackers call a run, and how they find it again."""

    id: str
    """The same in all trackers, and in the training that resumes."""
    name: str
    """For people: `<ablation>/student`, `baseline_teacher`."""
    project: str
    tags: Mapping[str, str]
    folder: str | None
    """Where trackers write files by default; None: nowhere."""
    continues: bool = False
    """An earlier process has begun the run."""


class BareArguments:
    """Stand-in for `TrainingArguments` where nothing is trained: what the callbacks read to open a run."""

    trackio_space_id = trackio_bucket_id = hub_private_repo = output_dir = None
    trackio_static_space_id = False

    def __init__(self, run_name: str, project: str):
        self.run_name, self.project = run_name, project

    def to_dict(self) -> dict[str, Any]:
        """Return no settings."""
        return {}


class TrackerRun:
    """A run in one tracker. All methods are called in the tracker's thread.

    Attributes:
        place: the run's address, or where its files are; known once it is open.
        known_step: the last step whose row the tracker has already, from before a resumption.
    """

    callback: TrainerCallback

    def __init__(self, identity: RunIdentity):
        self.identity = identity
        self.place: str | None = None
        self.known_step = -1

    def open(self, args: Any, state: TrainerState, model: Any = None) -> None:
        """Begin the run, or continue it.

        Args:
            args: the Trainer's arguments, or `BareArguments`.
            state: at the step that is done.
            model: what is trained; None: the run is opened to add figures of an evaluation.
        """
        raise NotImplementedError

    def log(self, args: Any, state: TrainerState, values: dict[str, float]) -> None:
        """Add a row, as transformers' callback does."""
        self.callback.on_log(args, state, TrainerControl(), logs=values)

    def close(self, args: Any, state: TrainerState, status: Status) -> None:
        """End the run; whatever was buffered is written."""
        raise NotImplementedError


@contextmanager
def variables(**values: str | None) -> Iterator[None]:
    """Set environment variables that transformers' callbacks read, inside the context; None unsets one."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def without_user(address: str) -> str:
    """Return an address without the user and password in it."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else address
