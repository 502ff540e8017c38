"""Errors that mean that memory ran out, the limits of a process, and what to do, in words.

Does not import torch: its errors are known by their words, as those of numpy, Arrow, Rust, C++ and CUDA are.
"""

import errno
import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenuq_ml.errors import InputError

_WORDS = re.compile(
    r"\bMemoryError\b|out of memory|OutOfMemory|can't allocate memory|cannot allocate memory|std::bad_alloc"
    r"|unable to allocate|memory allocation of \d+ bytes failed|malloc of size \d+ failed|ALLOC_FAILED"
    r"|memory allocation still failed|realloc of size \d+ failed"
    r"|could not allocate|not enough memory|os error 12\b",
    re.I,
)
_NO_THREAD = re.compile(
    r"can't start new thread|could not spawn threads|ThreadPoolBuildError|pthread_create failed|Thread creation failed"
    r"|failed to map segment from shared object",
    re.I,
)
"""What a limit of addresses brings about too, and other things without one."""
_ON_GPU = re.compile(r"CUDA|CUBLAS|CUDNN|MPS backend|HIP", re.I)
_GROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**60
"""Control groups of the first version write a number near 2^63 for no limit."""
_TRAINING = (
    "a smaller `train.micro_batch_size` or `max_length` needs less, and `precision.training: bfloat16` about half"
)
HINTS = {
    "train_teacher": _TRAINING,
    "train_student": _TRAINING,
    "score_teacher": "a smaller `max_length`, or `precision: bfloat16`, needs less",
    "convert_model": "the weights have to fit into memory once: use a smaller model or a machine with more",
    "load_dataset": "limit the rows (`limits` of the dataset in datasets.yaml), or shorten very long ones",
    "tokenize_dataset": "limit the rows (`limits` of the dataset in datasets.yaml), or shorten very long ones",
}
"""Entry point of a stage -> what needs less memory."""
_ANY = "use a machine with more, or end other processes"


@dataclass(frozen=True)
class MemoryLimit:
    """A limit of a process: its size in bytes, and who sets it."""

    size: int
    name: str


def ran_out(error: BaseException | str) -> bool:
    """Return whether an error, or the words of one, mean that memory ran out."""
    if isinstance(error, str):
        return _says_so(error)
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, MemoryError) or (isinstance(one, OSError) and one.errno == errno.ENOMEM):
            return True
        # Errors of ours may quote such words from a file or a user.
        if not isinstance(one, (OSError, InputError)) and _says_so(f"{type(one).__name__}: {one}"):
            return True
        one = one.__cause__ or one.__context__
    return False


def _says_so(words: str) -> bool:
    if _WORDS.search(words):
        return True
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return _NO_THREAD.search(words) is not None and any(limit != resource.RLIM_INFINITY for limit in limits)


def limits_of(pid: int | None = None) -> list[MemoryLimit]:
    """Return the memory limits of a process, the smallest first; the last one is the machine's memory.

    Default: this process. Its children inherit all of them.
    """
    return sorted(_limits(pid or os.getpid()), key=lambda limit: limit.size)


def kills_by_limit(pid: int | None = None) -> int:
    """Return how many processes the system has killed for the memory limit of a process's control group."""
    for folder in _group_folders(pid or os.getpid()):
        for name in ("memory.events", "memory.oom_control"):
            for line in _read(folder / name).splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def memory_sentence(what: str, entrypoint: str, words: str = "", peak: float | None = None) -> str:
    """Return that memory ran out: where, how much the process had, which limit it has, and what needs less.

    Args:
        what: the stage, as a name.
        entrypoint: the stage's program.
        words: of the error, shown if they speak of a GPU; its memory has no limit that could be looked up here.
        peak: of the process, in bytes; None: not known.
    """
    hint = f"{HINTS.get(entrypoint, _ANY)}; `tokenuq plan` estimates the memory of each stage"
    if _ON_GPU.search(words):
        return f"{what} ran out of GPU memory: {_first_sentences(words)}; {hint}"
    had = f"it had {_gib(peak)} at most, and " if peak else ""
    allowed = " and ".join(f"{limit.name} is {_gib(limit.size)}" for limit in limits_of()[:2])
    return f"{what} ran out of memory: {had}{allowed}; {hint}"


def _limits(pid: int) -> Iterator[MemoryLimit]:
    for number, name in (
        (resource.RLIMIT_AS, "the limit of addresses (`ulimit -v`, which counts reserved memory too)"),
        (resource.RLIMIT_DATA, "the limit of data (`ulimit -d`)"),
    ):
        soft = resource.getrlimit(number)[0] if pid == os.getpid() else _limit_of(pid, number)
        if soft not in (None, resource.RLIM_INFINITY):
            yield MemoryLimit(int(soft or 0), name)
    groups = [
        int(text)
        for folder in _group_folders(pid)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name).strip()).isdigit() and int(text) < _NO_LIMIT
    ]
    if groups:
        yield MemoryLimit(min(groups), "the limit of the container or control group")
    yield MemoryLimit(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the memory of this machine")


def _limit_of(pid: int, number: int) -> int | None:
    try:
        return resource.prlimit(pid, number)[0]
    except (OSError, AttributeError):  # The process has ended, or this is not Linux.
        return None


def _group_folders(pid: int) -> Iterator[Path]:
    """Yield the folders of a process's control group for memory and of those above it, in both versions."""
    for line in _read(Path(f"/proc/{pid}/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        root = _GROUPS / "memory" if "memory" in controllers.split(",") else _GROUPS
        if controllers and root == _GROUPS:
            continue
        # Inside a container the path may be the host's, which is not mounted; its root then holds the container's.
        folder = root / path.lstrip("/")
        while True:
            yield folder
            if folder == root:
                break
            folder = folder.parent


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _first_sentences(words: str) -> str:
    """Return what torch says of a GPU: what was asked for, and what the GPU has."""
    line = next((line for line in words.splitlines() if _ON_GPU.search(line)), words)
    return ". ".join(" ".join(line.split()).split(". ")[:3])[:400].rstrip(".")


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
