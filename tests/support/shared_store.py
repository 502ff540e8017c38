"""Several runs of the toy study on one store: each a process with its own DAGSTER_HOME, or with one that they share.

    python -m tests.support.shared_store STORE DAGSTER_HOME LOG [children]

runs the study as `tokenuq run` does. LOG gets a line for each stage that is started. With `children`, the model's stage
is a child process (`fake_entrypoints` has to be importable); the others run in the process, each for a moment.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg

from tests.support.toy_pipeline import STUDY, FakeStagesInProcess, Toy, fake_environment, toy_config
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.launcher import StageLauncher
from tokenuq_pipeline.runtime.paths import dagster_home as make_dagster_home
from tokenuq_pipeline.runtime.store import Store

MOMENT_S = 0.1
CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


class NotedStages(dg.ConfigurableResource):
    """Launches stages, and notes each in a log."""

    log: str
    children: bool

    def run(self, context, request, staging, lease):
        with open(self.log, "a") as file:
            file.write(f"{lease.asset}\n")
        if self.children and request.entrypoint == "convert_model":
            launcher = StageLauncher(package="fake_entrypoints", termination_timeout=30.0)
        else:
            launcher = FakeStagesInProcess()
            time.sleep(MOMENT_S)
        yield from launcher.run(context, request, staging, lease)


class SharedStore:
    """A store, and the runs that work on it."""

    def __init__(self, folder: Path, store: Path | None = None):
        self.folder, self.store, self.log = folder, Store(store or folder / "store"), folder / "stages.log"
        folder.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        self.runs: list[subprocess.Popen] = []

    def start(self, dagster_home: str, *before: str, children: bool = False, **environment: str) -> subprocess.Popen:
        """Start a run; `before` is put before the command, such as `CONTAINER`."""
        arguments = [str(self.store.home), str(self.folder / dagster_home), str(self.log)]
        run = subprocess.Popen(
            [
                *before,
                sys.executable,
                "-m",
                "tests.support.shared_store",
                *arguments,
                *(["children"] if children else []),
            ],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **fake_environment(self.folder), **environment},
        )
        self.runs.append(run)
        return run

    def kill(self) -> None:
        """Kill the runs that have not ended."""
        for run in self.runs:
            run.kill()
            run.wait()
            run.stdout.close()

    @property
    def stages(self) -> list[str]:
        """The stages that were started, in order."""
        return self.log.read_text().splitlines()

    @property
    def checkpoint(self) -> Path:
        """What the stage of the model writes when it is interrupted."""
        return self.store.home / ".checkpoints" / "models" / "tiny" / "checkpoint"

    @property
    def hanging(self) -> Path:
        """What the stage of the model writes when it hangs: its pid, and that of a child."""
        return self.checkpoint.with_name("pids")


def end(process: subprocess.Popen, seconds: float = 240) -> tuple[int, str]:
    """Wait for a run; return its exit code and what it printed."""
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out


def main(store: str, dagster_home: str, log: str, *children: str) -> int:
    os.environ["DAGSTER_HOME"] = dagster_home
    toy = Toy(make_dagster_home(), Path(store))
    launcher = NotedStages(log=log, children=bool(children))
    with dg.DagsterInstance.get() as instance:
        return run_study(toy.defs(launcher=launcher), toy_config(), STUDY, [], instance, toy.store)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
