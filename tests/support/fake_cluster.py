"""A stand-in for a Ray cluster: jobs are processes of this machine, known by files, so that they outlast a launcher.

It has no scheduler and no nodes. What Ray itself does is tested on a real cluster (`tests/cluster`).
"""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import psutil

from tokenuq_pipeline.runtime.launchers.ray_cluster import ClusterAway, JobState, NodeResources, RayCluster


class FakeCluster(RayCluster):
    """The cluster of a folder.

    Attributes:
        submitted: options of each job that this object has submitted, by id.
        away: the cluster does not answer.
        waits: jobs do not start.
    """

    def __init__(self, folder: Path, resources: dict[str, float] | None = None):
        super().__init__(f"fake://{folder}")
        self.folder, self._resources = folder, resources or {"CPU": 2.0, "memory": 1e9}
        self.submitted: dict[str, dict] = {}
        self.away = self.waits = False
        folder.mkdir(parents=True, exist_ok=True)

    def submit(self, job: str, **options) -> None:
        self._answer()
        self.submitted[job] = options
        process = None
        if not self.waits:
            process = subprocess.Popen(
                options["entrypoint"],
                shell=True,
                env={**os.environ, **options["runtime_env"]["env_vars"], "OMP_NUM_THREADS": "1"},
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=open(self.folder / f"{job}.stderr", "w"),
            )
        (self.folder / job).write_text(json.dumps(process and process.pid))

    def state(self, job: str) -> JobState:
        self._answer()
        if not (self.folder / job).exists():
            return JobState("GONE", "the cluster does not know it")
        pid = json.loads((self.folder / job).read_text())
        if pid is None:
            return JobState("PENDING", "it waits for resources")
        if pid == "stopped":
            return JobState("STOPPED")
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return JobState("RUNNING")
        said = (self.folder / f"{job}.stderr").read_text()
        return JobState("FAILED", said, "JOB_ENTRYPOINT_COMMAND_ERROR")

    def stop(self, job: str) -> None:
        self._answer()
        path = self.folder / job
        if path.exists() and path.read_text() == "null":
            path.write_text('"stopped"')
            return
        for process in self.processes(job):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)

    def resources(self) -> NodeResources:
        self._answer()
        return NodeResources((self._resources,))

    def processes(self, job: str) -> list[psutil.Process]:
        """Return the processes of a job, the first one first."""
        pid = json.loads((self.folder / job).read_text())
        if not isinstance(pid, int):
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            return [process, *process.children(recursive=True)]
        return []

    def kill(self) -> None:
        """Kill every job with everything that it started, as if its node lost power."""
        for path in self.folder.iterdir():
            for process in self.processes(path.name) if not path.suffix else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def forget(self) -> None:
        """Forget all jobs, as Ray does when its head node restarts."""
        for path in self.folder.iterdir():
            path.unlink()

    def _answer(self) -> None:
        if self.away:
            raise ClusterAway(f"RAY_ADDRESS={self.address}: no answer")
