"""Jobs of a cluster whose nodes share no file system with this machine: what of a job goes through the bucket."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tokenuq_ml.data.sources.remote import is_address
from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store.address import CACHE_VARIABLE
from tokenuq_ml.object_store.registry import mirror_holding
from tokenuq_ml.stages.node_files import GIVEN, SERVICE
from tokenuq_ml.stages.request import StageRequest
from tokenuq_pipeline.runtime.bucket_jobs import BucketJobs

PROGRAM = "tokenuq_ml.stages.bucket_job"
UPLOAD_S = 300.0
"""Seconds that a job which is stopped in Ray's dashboard has to send its checkpoint."""
_READS_FILES = {"convert_model", "load_dataset", "curate_dataset"}


class _Settings(Protocol):
    @property
    def python(self) -> str: ...

    def runtime_env(self, grace_s: float, variables: Mapping[str, str] = {}) -> dict[str, Any]: ...


def in_bucket(request: StageRequest) -> bool:
    """Return whether a stage is of a store in a bucket."""
    return mirror_holding(Path(request.work_dir)) is not None


def reads_this_machine(request: StageRequest) -> bool:
    """Return whether a stage reads a user's own files, which only this machine is known to have."""
    if request.entrypoint not in _READS_FILES:
        return False
    paths = [asset.fields.get("path") for asset in request.assets.values()]
    return "curation" in request.inputs or any(path is not None and not is_address(path) for path in paths)


def submission(jobs: BucketJobs, folder: Path, settings: _Settings, grace_s: float) -> dict[str, Any]:
    """Upload a job, and return the options with which it is submitted.

    Args:
        jobs: of the stage.
        folder: of the job.
        settings: where nodes find the code.
        grace_s: seconds that a stopped stage has to write its checkpoint.
    """
    jobs.upload(folder)
    service = {GIVEN + name: os.environ[name] for name in SERVICE if os.environ.get(name)}
    arguments = shlex.join([PROGRAM, jobs.address, jobs.place(folder)])
    return {
        "entrypoint": f"exec {settings.python} -m {arguments}",
        "runtime_env": settings.runtime_env(grace_s + UPLOAD_S, service),
    }


def carried_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a stage without those that name folders of this machine."""
    return {name: value for name, value in variables.items() if name != CACHE_VARIABLE}


def refuse_spread(request: StageRequest) -> None:
    """Refuse a training whose ranks are on several nodes, which read and write one folder of checkpoints.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"{request.entrypoint}: no node has room for all of its processes, and several nodes have to share the folder "
        "TOKENUQ_CACHE under one path: mount such a folder and set TOKENUQ_RAY_SHARED_CACHE=1, or lower `processes` of "
        "the study"
    )
