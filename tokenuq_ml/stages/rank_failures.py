"""What ended a stage in several processes: each writes why it failed, and one of them failed first.

The others then fail because it is gone, or are stopped. A process writes to the file that torchrun names for it.
"""

import json
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenuq_ml.atomic_files import atomic_write

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable of torchrun: where a process writes why it failed."""
INTERRUPTED = 130
"""Exit code of a process that was interrupted."""
_LOST_PEERS = ("closed by peer", "reset by peer", "connection refused", "broken pipe", "nccl", "gloo")
"""Words of the errors of a rank that lost another one."""


def write_failure(code: int, sentence: str = "", error: BaseException | None = None) -> bool:
    """Write why this process fails where torchrun will look; return whether it has named a place.

    Args:
        code: the exit code to come.
        sentence: what is wrong, if it can be said in one.
        error: otherwise, the exception.
    """
    place = os.environ.get(ERROR_FILE)
    if not place:
        return False
    trace = "".join(traceback.format_exception(error)) if error is not None else ""
    content = {
        # As torchrun reads it.
        "message": {"message": sentence or repr(error), "extraInfo": {"timestamp": str(int(time.time()))}},
        "code": code,
        "sentence": sentence,
        "traceback": trace,
        "time": time.time(),
        "lost_peer": error is not None and not sentence and _lost_peer(error),
    }
    if trace:
        content["message"]["extraInfo"]["py_callstack"] = trace
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(place) as file:
        file.write(json.dumps(content).encode())
    return True


def _lost_peer(error: BaseException) -> bool:
    """Return whether the error is that another process could not be reached."""
    text = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, RuntimeError) and (type(error).__name__.startswith("Dist") or _any_of(text))


def _any_of(text: str) -> bool:
    return any(words in text for words in _LOST_PEERS)


def told_in(path: Path) -> dict[str, Any]:
    """Return what a process has written of its failure, as arguments of `RankFailure`; empty if it has not."""
    try:
        return _told(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}


def _told(content: Mapping[str, Any]) -> dict[str, Any]:
    names = ("sentence", "traceback", "time", "lost_peer")
    return {**{name: content[name] for name in names if name in content}, "is_told": "code" in content}


@dataclass(frozen=True)
class RankFailure:
    """How one process of a stage ended."""

    rank: int
    code: int
    """Its exit code, or minus a signal."""
    sentence: str = ""
    traceback: str = ""
    time: float = 0.0
    lost_peer: bool = False
    is_told: bool = False
    """Whether it wrote why."""

    @classmethod
    def of(cls, failure: Any) -> "RankFailure":
        """Return what torchrun's `ProcessFailure` and its file say."""
        return cls(failure.local_rank, failure.exitcode, **_told(failure.error_file_data))

    @property
    def order(self) -> tuple[int, float, int]:
        """The first of these is the cause: one that says why, then a signal, then what a lost process brings about.

        Of several that refuse the same input, it is rank 0, which has reported it.
        """
        if self.is_told and not self.lost_peer:
            return 0, 0.0 if self.sentence and self.rank == 0 else self.time, self.rank
        if self.code < 0:
            return 1, 0.0, self.rank
        return (3 if self.code == INTERRUPTED else 2), self.time, self.rank
