"""The connection of a stage to the Ray cluster that it runs on, and what its processes reserve there.

`ray` is an optional package, which is imported where it is used.
"""

import logging
import os
import signal
import sys

from tokenuq_ml.config.resources import StageResources
from tokenuq_ml.errors import InputError

PYTHON = "TOKENUQ_RAY_PYTHON"
"""Environment variable: the interpreter of stages on the cluster, if it is not that of the cluster."""
NEEDS_PACKAGE = "processes of a stage on a Ray cluster need the package ray: pip install 'tokenuq[ray]'"


def connect() -> None:
    """Connect this process to the cluster that it is a job of, or that RAY_ADDRESS names; once.

    Raises:
        InputError: ray is missing, or no cluster answers.
    """
    # What Ray's core writes to stderr about lost actors is for its developers.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError(NEEDS_PACKAGE) from None
    if ray.is_initialized():
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    python = {"py_executable": sys.executable} if os.environ.get(PYTHON) else None
    try:
        ray.init(address="auto", runtime_env=python, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        address = os.environ.get("RAY_ADDRESS", "not set")
        raise InputError(
            f"no Ray cluster answers ({str(error).splitlines()[0]}); RAY_ADDRESS is {address}: name the address of the "
            "cluster's head, such as head-node:6379, and set RAY_AUTH_MODE=token if it has a token"
        ) from None
    finally:
        # Ray ends a driver at SIGTERM, without a checkpoint.
        for number, handler in handlers.items():
            signal.signal(number, handler)


def is_job() -> bool:
    """Return whether this process belongs to a job that Ray has started, and so has resources of the cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def cluster_nodes() -> list[dict[str, float]]:
    """Return what each node that is alive has in total, by Ray's names."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def reserved_by_process(resources: StageResources, cluster_gpus: float) -> dict[str, float]:
    """Return what a process reserves, by Ray's names: as the study says, else a processor, and a GPU if there are any.

    Args:
        resources: of one process.
        cluster_gpus: GPUs of the cluster.
    """
    gpus = resources.num_gpus if resources.num_gpus is not None else float(cluster_gpus > 0)
    needs = {"CPU": resources.num_cpus or 1, "GPU": gpus, "memory": resources.memory or 0, **resources.custom}
    return {name: amount for name, amount in needs.items() if amount}
