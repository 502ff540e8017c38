"""What a stage reads of a store in a bucket, for its processes on nodes that do not see the folder of its job."""

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenuq_ml.errors import InputError
from tokenuq_ml.object_store.address import Address, node_folder
from tokenuq_ml.object_store.mirror import Mirror
from tokenuq_ml.stages.job_files import not_seen
from tokenuq_ml.stages.job_objects import CARRIED, CarriedJob, StoredFile
from tokenuq_ml.tables.integrity import REPAIR

SERVICE = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that say where the service is, which nodes take from the run if they have none of them."""
GIVEN = "TOKENUQ_GIVEN_"
"""Beginning of the names under which the run passes them."""
JOB_FOLDER, JOB_STORE = "TOKENUQ_JOB_FOLDER", "TOKENUQ_JOB_STORE"
"""Environment variables of a stage whose files its job has fetched: the job's folder, and the address of the store."""


def use_given_service() -> None:
    """Let this process find the service where the run does, unless its node says where it is."""
    if not any(os.environ.get(name) for name in SERVICE[:2]):
        os.environ.update({name: os.environ[GIVEN + name] for name in SERVICE if os.environ.get(GIVEN + name)})


@dataclass(frozen=True)
class NodeFiles:
    """The files that a job has fetched on its node, which processes on others fetch from the same store."""

    address: str
    job: Path
    """Folder of the job on its node."""
    home: str
    """Folder of the store there."""
    reads: tuple[StoredFile, ...]

    @classmethod
    def of_this_stage(cls, environment: Mapping[str, str] = os.environ) -> "NodeFiles | None":
        """Return what the job of this stage has fetched; None if the store's files are seen by all nodes."""
        if JOB_FOLDER not in environment:
            return None
        return _node_files(environment[JOB_STORE], Path(environment[JOB_FOLDER]))

    def folder(self, path: str) -> str:
        """Return where a folder that the stage reads is on this node, with the files that the stage reads of it.

        Raises:
            InputError: the bucket cannot be read, or a file is missing or damaged.
        """
        if self.job.is_dir():
            return path
        place = Path(path).relative_to(self.home).as_posix()
        files = [file for file in self.reads if file.path.startswith(f"{place}/")]
        use_given_service()
        address = Address.parse(self.address)
        mirror = Mirror(address, node_folder(address))
        with open(mirror.home / ".lock", "a") as lock:
            # One process of a node downloads; the others then find the files.
            fcntl.flock(lock, fcntl.LOCK_EX)
            wrong = mirror.fetch_all(files)
        for sentence in wrong.values():
            raise InputError(f"{sentence}; {REPAIR}")
        if not files:
            raise InputError(not_seen(path))
        return str(mirror.home / place)


@cache
def _node_files(address: str, job: Path) -> NodeFiles:
    carried = CarriedJob.model_validate_json((job / CARRIED).read_bytes())
    return NodeFiles(address, job, carried.home, tuple(carried.reads))
