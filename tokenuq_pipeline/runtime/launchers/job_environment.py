"""The environment that a stage gets on a cluster: what is listed here, and nothing else of this process's."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from tokenuq_ml.stages.request import PARALLEL_STAGES, StageRequest
from tokenuq_ml.stages.runner import THREADS
from tokenuq_ml.stages.thread_waits import thread_waits
from tokenuq_pipeline.runtime.dagster_settings import POSTGRES_VARIABLE
from tokenuq_pipeline.runtime.launch_command import measures_only, processes_of
from tokenuq_pipeline.runtime.launchers.ray_cluster import NodeResources

PASSED = ("HF_", "TOKENUQ_")
"""Beginnings of the names of variables that every stage gets."""
NOT_PASSED = {POSTGRES_VARIABLE, "TOKENUQ_UI_TOKEN"}
"""Passwords of Dagster's records and of the UI, which no stage needs."""
MORE = "TOKENUQ_RAY_ENV"
"""Environment variable: names of further variables to pass, separated by commas."""
OF_TRACKERS = {
    "tensorboard": ("TENSORBOARD_",),
    "mlflow": ("MLFLOW_", "DATABRICKS_"),
    "wandb": ("WANDB_",),
    "trackio": ("TRACKIO_",),
}
"""The same for stages that report to a tracker: its address, its settings and its key."""
_KEY = "api_key_env"
OMP_THREADS = "OMP_NUM_THREADS"
DIVIDED = ("CPU", "GPU", "memory")
"""What each process of a stage reserves a share of; other resources are labels of nodes."""
OF_A_SPREAD_JOB = {"memory": 2**28}
"""What the job of ranks on several nodes reserves itself; Ray Train reserves the rest."""


def job_environment(request: StageRequest, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables of a stage: tokenuq's and Hugging Face's, those of its trackers, the keys of its judge.

    And what a person has named.

    Args:
        request: of the stage; names the variables of keys.
        environment: of this process.
    """
    named = {name.strip() for name in environment.get(MORE, "").split(",")}
    for asset in request.assets.values():
        named |= set(_keys(asset.fields))
    trackers = () if request.tracking is None else request.tracking.report_to
    beginnings = (*PASSED, *(beginning for tracker in trackers for beginning in OF_TRACKERS[tracker]))
    passed = {name: value for name, value in environment.items() if name.startswith(beginnings) or name in named}
    return {
        **{name: passed[name] for name in passed.keys() - NOT_PASSED},
        **thread_waits(environment),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _keys(fields: Any) -> Iterator[str]:
    """Yield the names of the variables that hold keys, from anywhere in the fields."""
    for name, value in fields.items() if isinstance(fields, dict) else enumerate(fields):
        if name == _KEY and isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            yield from _keys(value)


def reserved(request: StageRequest, cluster_gpus: float) -> dict[str, float]:
    """Return what a stage reserves, by Ray's names: as the study says, else a processor, and a GPU for each process.

    A job that reserves nothing would run on the head node, and would see no GPU. If other processes of the cluster
    compute its batches, they and the job reserve a share each.

    Args:
        request: of the stage.
        cluster_gpus: GPUs of the cluster. Without any, a stage reserves none unless the study says so.
    """
    processes = _processes(request)
    is_shared = measures_only(request)
    asked = request.resources.share(processes) if is_shared else request.resources
    gpus = asked.num_gpus
    if gpus is None:
        gpus = (1 if is_shared else processes) if cluster_gpus and request.entrypoint in PARALLEL_STAGES else 0
    needs = {"CPU": asked.num_cpus or 1, "GPU": gpus, "memory": asked.memory or 0, **asked.custom}
    return {name: amount for name, amount in needs.items() if amount}


def spreads(request: StageRequest, cluster: NodeResources) -> bool:
    """Return whether the ranks of a training need several nodes, since none has room for all, and the cluster has."""
    processes = processes_of(request)
    if processes == "auto" or processes == 1 or measures_only(request):
        return False
    needs = reserved(request, cluster.total("GPU"))
    if cluster.fit(needs):
        return False
    share = {name: needs[name] / processes if name in DIVIDED else needs[name] for name in needs}
    return cluster.room(share) >= processes


def threads(
    request: StageRequest, needs: Mapping[str, float], environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the variables that set the threads of each process of a stage.

    They are those of the same stage on this machine if the environment says how many, because sums are rounded by
    them; else its share of the processors that are reserved.

    Args:
        request: of the stage.
        needs: what it reserves, by Ray's names.
        environment: of this process.
    """
    if given := environment.get(THREADS) or environment.get(OMP_THREADS):
        # OpenMP's variable may be a list, for nested regions.
        given = given.split(",")[0].strip()
        return {THREADS: given, OMP_THREADS: given}
    if measures_only(request):
        processes = 1
    else:
        processes = max(1, int(needs.get("GPU", 0))) if processes_of(request) == "auto" else _processes(request)
    processors = needs.get("CPU", request.resources.num_cpus or processes)
    share = str(max(1, int(processors // processes)))
    return {THREADS: share, OMP_THREADS: share}


def _processes(request: StageRequest) -> int:
    processes = processes_of(request)
    return 1 if processes == "auto" else processes
