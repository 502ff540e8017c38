"""Failures of a stage that a person can end: a full disk, and memory that ran out. Both are told in one sentence.

Neither is retried: the same disk and the same limit would be met again.
"""

import os
from pathlib import Path

from tokenuq_ml.disk import full_disk
from tokenuq_ml.errors import InputError
from tokenuq_ml.out_of_memory import memory_sentence, ran_out
from tokenuq_ml.permissions import not_permitted
from tokenuq_ml.stages.request import StageRequest

NO_SPACE, NO_MEMORY, NO_RIGHTS = 28, 12, 13
"""Exit codes: the system's numbers of these errors. A sentence may have found no room in the message file."""
RESERVE = "reserve"
"""A file next to the request. It is deleted before a message is written on a full disk, to make room for it."""
RESERVE_BYTES = 2**16


def write_reserve(folder: Path) -> None:
    """Reserve the space for the last message of a stage."""
    (folder / RESERVE).write_bytes(bytes(RESERVE_BYTES))


def release_reserve(folder: Path) -> None:
    """Give the reserved space back, which makes room for a message."""
    try:
        (folder / RESERVE).unlink(missing_ok=True)
    except OSError:  # A read-only file system: the exit code has to do.
        return


def name_of(request: StageRequest) -> str:
    """Return how messages name a stage."""
    return "/".join(part for part in (request.study, request.ablation, request.entrypoint) if part)


def caches() -> list[Path]:
    """Return the folders that Hugging Face's libraries download and convert to, as the environment names them."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    named = [os.environ.get(name) for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE")]
    return [home, *(Path(name) for name in named if name)]


def known_failure(error: BaseException, request: StageRequest, staging: Path, peak: float) -> tuple[int, str] | None:
    """Return exit code and sentence for a full disk, or a lack of memory or rights; None for other errors.

    Args:
        error: that ended the stage.
        request: of the stage.
        staging: the folder of the request.
        peak: bytes of memory that the process had at most.
    """
    if isinstance(error, InputError):
        return None
    if (message := not_permitted(error)) is not None:
        return NO_RIGHTS, f"{name_of(request)}: {message}"
    # A lack of memory can have a full disk as its cause, as in DuckDB, which then spills to it.
    if (message := full_disk(error, staging, request.work_dir, *caches())) is not None:
        return NO_SPACE, f"{name_of(request)}: {message}"
    if ran_out(error):
        return NO_MEMORY, memory_sentence(name_of(request), request.entrypoint, str(error), peak)
    return None
