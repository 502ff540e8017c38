"""The backend that the environment names: `TOKENUQ_LAUNCHER=local` (the default) or `ray`, and how much runs there.

What runs at once is a number of stages with a model: `$TOKENUQ_ACCELERATOR_SLOTS`, else as many as there are devices.
"""

import os
from collections.abc import Mapping

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.launchers.base import Backend
from tokenuq_pipeline.runtime.launchers.local import LocalBackend
from tokenuq_pipeline.runtime.launchers.local_gpus import visible_gpus

LAUNCHER = "TOKENUQ_LAUNCHER"
LOCAL, RAY = "local", "ray"
SLOTS_VARIABLE = "TOKENUQ_ACCELERATOR_SLOTS"


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
        return LocalBackend(slots_named(environment))
    from tokenuq_pipeline.runtime.launchers.ray_cluster import cluster_of
    from tokenuq_pipeline.runtime.launchers.ray_jobs import RayBackend
    from tokenuq_pipeline.runtime.launchers.ray_settings import RaySettings

    return RayBackend(cluster_of(environment), RaySettings.of(environment))


def slots_named(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return how many models `$TOKENUQ_ACCELERATOR_SLOTS` says that there is room for; None if it is not set.

    Raises:
        InputError: it is not a positive integer.
    """
    text = environment.get(SLOTS_VARIABLE)
    if text is not None and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InputError(f"{SLOTS_VARIABLE}: must be a positive integer, is {text!r}")
    return int(text) if text else None


def several_models_fit(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether several models may run at once. A cluster is not asked: it may start later.

    Raises:
        InputError: a variable has a wrong value.
    """
    named = slots_named(environment)
    if named is not None:
        return named > 1
    return uses_ray(environment) or len(visible_gpus(environment)) > 1


def models_at_once(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return how many models run at once, if the environment or the devices say so.

    A cluster holds one per GPU, or per processor where there is no GPU; this machine holds one per GPU if it has
    several. None: nothing is known, such as of a cluster that does not answer.

    Raises:
        InputError: a variable has a wrong value, or the package that it needs is missing.
    """
    if (named := slots_named(environment)) is not None:
        return named
    if not uses_ray(environment):
        gpus = len(visible_gpus(environment))
        return gpus if gpus > 1 else None
    from tokenuq_pipeline.runtime.launchers.ray_cluster import ClusterAway, cluster_of

    try:
        nodes = cluster_of(environment).resources()
    except ClusterAway:
        return None
    return max(1, int(nodes.total("GPU") or nodes.total("CPU")))
