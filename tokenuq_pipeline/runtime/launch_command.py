"""The command that starts a stage: one process, or several by torchrun.

Launchers of every kind start the same command where the store's folders are. The number of processes is no part of a
version. `auto` is resolved by the started process, because the GPUs may be another machine's.
"""

import os
import sys
from pathlib import Path

from tokenuq_ml.config.resources import Processes
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.request import PARALLEL_STAGES, StageRequest

PROCESSES = "TOKENUQ_PROCESSES"
"""Environment variable: the number of processes of a stage, or `auto`; takes the place of the study's `processes`."""
TRAINED = {"candidate_teacher", "baseline_teacher", "ensemble_teacher", "student"}
"""Assets that are trained."""


def processes_of(request: StageRequest) -> Processes:
    """Return how many processes a stage is started in.

    Raises:
        InputError: the environment variable is neither a number from 1 nor `auto`.
    """
    if request.entrypoint not in PARALLEL_STAGES:
        return 1
    text = os.environ.get(PROCESSES)
    if not text:
        return request.processes
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"{PROCESSES} is {text!r}; set it to a number from 1, or to auto (one process per GPU)")
    return int(text)


def stage_command(package: str, request: StageRequest, request_file: str | Path, processes: Processes) -> list[str]:
    """Return the command that runs a stage; its exit code is the stage's.

    Args:
        package: of the entry points.
        request: of the stage.
        request_file: the request as JSON, where the stage will read it.
        processes: as `processes_of` returns them.
    """
    module = f"{package}.{request.entrypoint}"
    if processes == 1:
        return [sys.executable, "-m", module, str(request_file)]
    return [sys.executable, "-m", "tokenuq_ml.stages.several_processes", str(processes), module, str(request_file)]


def measures_only(request: StageRequest) -> bool:
    """Return whether a stage of several processes trains nothing, so that they need not know of each other.

    Those that share the weights of a model do.
    """
    return request.entrypoint in PARALLEL_STAGES and request.sharding == "none" and not TRAINED & request.assets.keys()


def cluster_command(
    package: str, request: StageRequest, request_file: str | Path, processes: Processes, spreads: bool = False
) -> list[str]:
    """Return the command that runs a stage as a job of a Ray cluster.

    The job of a stage that measures only is one process, which has its batches computed by other processes of the
    cluster, on any node. Ranks that train, or share the weights of a model, are processes of the job's node, as long as
    one node has room for them.

    Args:
        package: of the entry points.
        request: of the stage.
        request_file: the request as JSON, where the stage will read it.
        processes: as `processes_of` returns them.
        spreads: ranks are processes of several nodes.
    """
    if processes == 1 or not (spreads or measures_only(request)):
        return stage_command(package, request, request_file, processes)
    module = f"{package}.{request.entrypoint}"
    program = "tokenuq_ml.stages.train_on_ray" if spreads else "tokenuq_ml.stages.measure_on_ray"
    return [sys.executable, "-m", program, str(processes), module, str(request_file)]
