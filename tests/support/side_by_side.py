"""A run of the toy study whose steps have processes of their own, on fake stages: as children, or on a fake cluster.

`python -m tests.support.side_by_side FOLDER [CLUSTER]` is `tokenuq run` of it. A terminal's Ctrl-C is `interrupt`.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import dagster as dg
import psutil

from tests.support.fake_cluster import FakeCluster
from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_pipeline.automation.study_runner import JobRecipe
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.launchers.local import LocalBackend
from tokenuq_pipeline.runtime.launchers.ray_jobs import RayBackend

WORK = Path(".checkpoints", STUDY)


def definitions(folder: str, cluster: str) -> dg.Definitions:
    """Return the definitions, as the run and each step's process build them."""
    backend = RayBackend(FakeCluster(Path(cluster))) if cluster else LocalBackend(2)
    launcher = StageLauncher(package="fake_entrypoints", termination_timeout=20.0, backend=backend)
    return build_defs(toy_config(), Toy(Path(folder)).store.home, launcher, dg.multiprocess_executor)


def study_job(folder: str, cluster: str) -> dg.JobDefinition:
    """Return the job that the process of a step builds."""
    return definitions(folder, cluster).resolve_job_def(STUDY)


class SideBySide:
    """A toy study that a process of its own runs, with two slots.

    Args:
        toy: where.
        behaviour: of the fake stages.
        cluster: the folder of a fake cluster.
    """

    def __init__(self, toy: Toy, behaviour: Path, cluster: Path | None = None):
        self.toy, self.cluster, self._behaviour = toy, cluster, behaviour
        self._runs: list[subprocess.Popen] = []

    def start(self, stdout: int | TextIO = subprocess.PIPE, **environment: str) -> subprocess.Popen:
        """Start a run, as the leader of a process group, as a shell does."""
        arguments = [str(self.toy.folder), *([str(self.cluster)] if self.cluster else [])]
        own = {"TOKENUQ_ACCELERATOR_SLOTS": "2", "FAKE_STAGE": f"@{self._behaviour}"}
        run = subprocess.Popen(
            [sys.executable, "-m", "tests.support.side_by_side", *arguments],
            env={**os.environ, **own, **environment},
            text=True,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        self._runs.append(run)
        return run

    def end(self) -> None:
        """Kill what a failed test has left: runs with their steps, and jobs of the cluster."""
        for run in self._runs:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in (psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
        if self.cluster:
            FakeCluster(self.cluster).kill()

    def work_dir(self, ablation: str) -> Path:
        """Return the folder of checkpoints of a student."""
        return self.toy.store.home / WORK / ablation / "student"

    def waiting(self) -> dict[str, list[int]]:
        """Return the pids of the students that wait or hang, by ablation."""
        files = {name: self.work_dir(name) / "pids" for name in ("mle", "top")}
        return {name: list(map(int, file.read_text().split())) for name, file in files.items() if file.exists()}


def interrupt(run: subprocess.Popen) -> None:
    """Send SIGINT to all processes of the run's group, as a terminal does on Ctrl-C."""
    os.killpg(run.pid, signal.SIGINT)


def main() -> int:
    """Run the study and return the exit code."""
    folder, cluster = sys.argv[1], (sys.argv[2:] or [""])[0]
    toy, config = Toy(Path(folder)), toy_config()
    recipe = JobRecipe("tests.support.side_by_side", study_job.__name__, (folder, cluster))
    with toy.instance() as instance:
        defs = definitions(folder, cluster)
        return run_study(defs, config, STUDY, [], instance, toy.store, in_steps=recipe)


if __name__ == "__main__":
    sys.exit(main())
