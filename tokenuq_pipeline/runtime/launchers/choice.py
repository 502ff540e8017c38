"""The backend that the environment names: `TOKENUQ_LAUNCHER=local` (the default) or `ray`, and how much runs there."""

import os
from collections.abc import Mapping

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.launchers.base import Backend
from tokenuq_pipeline.runtime.launchers.local import LocalBackend

LAUNCHER = "TOKENUQ_LAUNCHER"
LOCAL, RAY = "local", "ray"


def uses_ray(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether stages run on a Ray cluster.

    Raises:
        InputError: there is no such launcher.
    """
    name = environment.get(LAUNCHER) or LOCAL
    if name not in (LOCAL, RAY):
        raise InputError(f"{LAUNCHER}: unknown launcher {name!r}; allowed: {LOCAL}, {RAY}")
    return name == RAY


def chosen_backend(environment: Mapping[str, str] = os.environ) -> Backend:
    """Return what runs stages. Does not connect to a cluster.

    Raises:
        InputError: a variable has a wrong value, or the package that it needs is missing.
    """
    if not uses_ray(environment):
        return LocalBackend()
    from tokenuq_pipeline.runtime.launchers.ray_cluster import cluster_of
    from tokenuq_pipeline.runtime.launchers.ray_jobs import RayBackend
    from tokenuq_pipeline.runtime.launchers.ray_settings import RaySettings

    return RayBackend(cluster_of(environment), RaySettings.of(environment))


def cluster_slots(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return how many models the cluster holds at once: one per GPU, or per processor where there is no GPU.

    None if stages run here, or the cluster does not answer.

    Raises:
        InputError: a variable has a wrong value, or the package that it needs is missing.
    """
    if not uses_ray(environment):
        return None
    from tokenuq_pipeline.runtime.launchers.ray_cluster import ClusterAway, cluster_of

    try:
        nodes = cluster_of(environment).resources()
    except ClusterAway:
        return None
    return max(1, int(nodes.total("GPU") or nodes.total("CPU")))
