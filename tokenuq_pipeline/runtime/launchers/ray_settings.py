"""How stages find their code on a Ray cluster, and how long a job works without a run, as the environment says."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime.seconds import seconds_of

PYTHON, WORKING_DIR, IMAGE = "TOKENUQ_RAY_PYTHON", "TOKENUQ_RAY_WORKING_DIR", "TOKENUQ_RAY_IMAGE"
UNATTENDED = "TOKENUQ_RAY_UNATTENDED_SECONDS"
SHARED_CACHE = "TOKENUQ_RAY_SHARED_CACHE"
"""Environment variable: `1` if all nodes see the folder TOKENUQ_CACHE of this machine, under the same path."""
UNATTENDED_S = 900.0
EXCLUDED = [".git", ".venv", "store", ".dagster_home"]
"""Folders of a checkout that are not uploaded. Ray leaves out what git ignores, too."""


@dataclass(frozen=True)
class RaySettings:
    """Where the code of stages comes from, and how long a job works without a run."""

    python: str = shlex.quote(sys.executable)
    """The interpreter, quoted for a shell."""
    working_dir: str | None = None
    """A checkout that Ray uploads; by default the code is installed on the nodes, or in the image."""
    image: str | None = None
    unattended_s: float = UNATTENDED_S
    shares_cache: bool = False
    """Nodes see the local folder of a store in a bucket, so that nothing has to travel through the bucket."""

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "RaySettings":
        """Return the settings of an environment.

        Raises:
            InputError: a variable has a wrong value.
        """
        image, folder = environment.get(IMAGE), environment.get(WORKING_DIR)
        if folder and not (Path(folder) / "tokenuq_ml").is_dir():
            raise InputError(
                f"{WORKING_DIR}: {folder} is no checkout of tokenuq; name the folder that holds tokenuq_ml"
            )
        if image and folder:
            raise InputError(f"{IMAGE} and {WORKING_DIR}: Ray uploads no code into an image; unset one of them")
        # An image has an interpreter of its own; nodes of one shared file system have this one.
        python = environment.get(PYTHON) or ("python" if image else sys.executable)
        seconds = seconds_of(UNATTENDED, UNATTENDED_S, environment)
        shared = environment.get(SHARED_CACHE) or "0"
        if shared not in ("0", "1"):
            raise InputError(f"{SHARED_CACHE}: must be 1 or 0, is {shared!r}")
        return cls(shlex.quote(python), folder or None, image or None, seconds, shared == "1")

    def runtime_env(self, grace_s: float, variables: Mapping[str, str] = {}) -> dict[str, Any]:
        """Return what Ray needs to know of a job's environment; its keys are not among it.

        Args:
            grace_s: seconds that a job which is stopped in Ray's dashboard has to write a checkpoint.
            variables: of the job, which Ray shows to everyone.
        """
        stop = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(int(grace_s) + 5)}
        found: dict[str, Any] = {"env_vars": {**stop, **variables}}
        if self.image:
            found["image_uri"] = self.image
        if self.working_dir:
            found |= {"working_dir": self.working_dir, "excludes": EXCLUDED}
        return found
