"""The GPUs of this machine: each stage with a model gets some of its own, and waits for them.

Stages of one run, of several runs and of several stores on a machine share its GPUs. A stage would take the first one
that it sees, so it is shown only those that it has reserved. A reservation is a set of locks (`flock`) on files in a
folder of this user, which the stage inherits: they end with the stage, however it ends. A GPU has `SHARES` of them, so
that stages that need less than one fit together.

Dagster's pools count stages, and do not say which device is free. Ray assigns devices, and needs a cluster
(`ray start --head` makes one of this machine); CUDA and torch assign none.
"""

import contextlib
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.failures import name_of
from tokenuq_ml.stages.request import PARALLEL_STAGES, StageRequest
from tokenuq_pipeline.runtime.folder_lock import try_lock
from tokenuq_pipeline.runtime.launch_command import processes_of

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable of CUDA, which ROCm knows too: the GPUs that a process sees, by number or UUID."""
SHARES = 12
"""Parts of a GPU that can be reserved: halves, thirds, quarters."""
POLL_S = 0.5


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the names of the GPUs that processes see: as `CUDA_VISIBLE_DEVICES` lists them, else NVIDIA's by number.

    torch would tell the same, and takes seconds to import.
    """
    listed = environment.get(VISIBLE)
    if listed is None:
        return tuple(str(number) for number in range(_nvidia_gpus()))
    found: list[str] = []
    for name in (one.strip() for one in listed.split(",")):
        # As CUDA reads it: what follows a name that is none is not seen.
        if not name or name.startswith("-"):
            break
        found.append(name)
    return tuple(found)


@cache
def _nvidia_gpus() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, timeout=60, check=False)
        return len(re.findall(r"^GPU \d+:", said.stdout, re.MULTILINE)) if said.returncode == 0 else 0
    return 0


class GpuReservation:
    """The GPUs of a stage.

    Attributes:
        variables: of the stage's environment.
        descriptors: to be passed to the stage, which holds the reservation by them.
    """

    def __init__(self, names: Sequence[str] = (), descriptors: Sequence[int] = ()):
        self.variables = {VISIBLE: ",".join(names)} if names else {}
        self.descriptors = list(descriptors)

    def leave_to_child(self) -> None:
        """Let go of the GPUs, which a child started with the descriptors keeps. Does nothing the second time."""
        while self.descriptors:
            os.close(self.descriptors.pop())


@contextlib.contextmanager
def reserved_gpus(
    request: StageRequest,
    models: int | None,
    say: Callable[[str], None],
    environment: Mapping[str, str] = os.environ,
    folder: Path | None = None,
) -> Iterator[GpuReservation]:
    """Reserve what a stage needs of this machine's GPUs, and wait until it is free.

    Nothing is reserved, and the environment stays as it is, where there are no two GPUs to choose from, and for stages
    without a model.

    Args:
        request: of the stage.
        models: how many stages with a model run at once. If there are more of them than GPUs, they share.
        say: called with one sentence before waiting.
        environment: of this process.
        folder: of the locks; by default one of this user, on this machine.

    Raises:
        InputError: the stage needs more GPUs than there are.
    """
    gpus = visible_gpus(environment)
    wanted = _wanted(request, len(gpus), models or 0) if len(gpus) > 1 else 0.0
    if not wanted:
        yield GpuReservation()
        return
    count, shares = max(1, math.floor(wanted)), SHARES if wanted >= 1 else math.ceil(wanted * SHARES)
    reservation = _wait(folder or _folder(), gpus, count, shares, say)
    try:
        yield reservation
    finally:
        reservation.leave_to_child()


def _wanted(request: StageRequest, gpus: int, models: int) -> float:
    """Return how many GPUs a stage needs; less than one: a share of one."""
    if request.entrypoint not in PARALLEL_STAGES:
        return 0.0
    wanted, processes = request.resources.num_gpus, processes_of(request)
    if wanted is None:
        # More processes than GPUs are refused where they are started.
        count = gpus if processes == "auto" else min(processes, gpus)
        return count if count > 1 or models <= gpus else 1 / math.ceil(models / gpus)
    if wanted > gpus:
        raise InputError(
            f"{name_of(request)} needs {wanted:g} GPUs by `resources` of the study, and {gpus} are visible here; lower "
            "num_gpus, or run the study on a cluster"
        )
    return float(math.ceil(wanted)) if wanted > 1 else wanted


def _wait(folder: Path, gpus: Sequence[str], count: int, shares: int, say: Callable[[str], None]) -> GpuReservation:
    """Take `shares` of each of `count` GPUs, once they are free. Who comes later waits: nobody is passed over."""
    told = False
    with contextlib.ExitStack() as stack:
        queue: int | None = None
        while True:
            if queue is None and (queue := try_lock(folder / "queue")) is not None:
                stack.callback(os.close, queue)
            found = _take(folder, gpus, count, shares) if queue is not None else None
            if found is not None:
                return found
            if not told:
                say(f"waits for {_described(count, shares)} of this machine; other stages use them")
                told = True
            time.sleep(POLL_S)


def _take(folder: Path, gpus: Sequence[str], count: int, shares: int) -> GpuReservation | None:
    """Lock what is asked for, on the GPUs with the most room; None if it is not free."""
    free = {gpu: _locked_shares(folder, gpu) for gpu in gpus}
    best = sorted(gpus, key=lambda gpu: -len(free[gpu]))[:count]
    enough = all(len(free[gpu]) >= shares for gpu in best)
    kept = [free[gpu].pop() for gpu in best for _ in range(shares)] if enough else []
    for descriptor in (one for locks in free.values() for one in locks):
        os.close(descriptor)
    return GpuReservation(best, kept) if enough else None


def _locked_shares(folder: Path, gpu: str) -> list[int]:
    """Lock all shares of a GPU that are free; return their descriptors."""
    names = (folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', gpu)}.{number}" for number in range(SHARES))
    return [descriptor for name in names if (descriptor := try_lock(name)) is not None]


def _described(count: int, shares: int) -> str:
    if shares < SHARES:
        return f"{shares / SHARES:.0%} of a GPU"
    return "a GPU" if count == 1 else f"{count} GPUs"


def _folder() -> Path:
    """Return the folder of this user's locks, on this machine: not in a home that several machines share.

    Raises:
        InputError: another user has it.
    """
    folder = Path(tempfile.gettempdir()) / f"tokenuq-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder}: belongs to another user; remove it, or set TMPDIR to a folder of your own")
    return folder
