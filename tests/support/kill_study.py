"""Kill processes at random moments: the training child, the run worker, or `dagster dev`. A script, not a test.

`python -m tests.support.kill_study FOLDER [--kills 10] [--seed 0]` runs a tiny study of real stages twice, undisturbed
and under kills. After each kill it prints whether a process or a half-written table was left, and at the end whether
both stores hold the same data versions.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import yaml

from tests.support.dev_server import REPOSITORY, DevServer
from tests.support.paths import ROOT
from tests.support.processes import all_processes
from tests.support.tiny_study import CONFIG, STUDY, write_inputs
from tokenuq_pipeline.runtime.processes import ZOMBIE
from tokenuq_pipeline.runtime.store import Store

TOKENUQ = Path(sys.executable).with_name("tokenuq")


class Checkout(DevServer):
    """`dagster dev` over this checkout with the tiny study in addition to its own configuration."""

    job = STUDY

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.environment |= {
            "TOKENUQ_CONFIG": str(folder / "config"),
            "TOKENUQ_HOME": str(folder / "store"),
            "DAGSTER_HOME": str(folder / "toy" / "dagster_home"),
            "HF_HUB_OFFLINE": "1",
        }
        self.store = Store(folder / "store")
        self.arguments = ["-w", str(ROOT / "workspace.yaml")]

    def tokenuq(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [TOKENUQ, *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )

    def stages(self) -> list[int]:
        """Return the pids of running stages of this study."""
        return [
            pid
            for pid, stat, command in all_processes()
            if "tokenuq_ml.stages" in command and str(self.folder) in command and stat.state != ZOMBIE
        ]

    def problems(self) -> list[str]:
        """Return what is wrong with the store: a manifest whose files do not match, a table that cannot be read."""
        problems = [f"{name}: {problem}" for name in self.store.assets() for problem in self.store.problems(name)]
        for path in self.store.home.glob("[a-z]*/**/*.parquet"):
            try:
                pl.read_parquet(path)
            except Exception as error:
                problems.append(f"{path}: {error}")
        return problems


def prepare(folder: Path) -> None:
    config = folder / "config"
    config.mkdir(parents=True)
    write_inputs(config)
    studies = json.loads(json.dumps(CONFIG["studies"]))
    studies[STUDY]["train"] |= {"epochs": 100, "save_steps": 5}
    del studies[STUDY]["evaluation"]["alpaca_eval"]
    names = {name: f"kill_{name}" for name in CONFIG["ablations"]}
    studies[STUDY]["ablations"] = list(names.values())
    (config / "studies.yaml").write_text(yaml.safe_dump(studies))
    (config / "ablations.yaml").write_text(
        yaml.safe_dump({names[name]: entry for name, entry in CONFIG["ablations"].items()})
    )


def versions(store: Store) -> dict[str, str]:
    return {name: store.data_version(name) for name in store.assets()}


def launch_stale(server: Checkout) -> str | None:
    """Do what a person does who presses `Materialize` on what is missing or stale; None if nothing is."""
    rows = json.loads(server.tokenuq("status", "--study", STUDY, "--format", "json").stdout)
    keys = [row["asset"].split("/") for row in rows if row["state"] in ("missing", "stale")]
    return server.launch(*keys) if keys else None


def run_to_the_end(server: Checkout) -> None:
    while (run := launch_stale(server)) is not None:
        server.wait(lambda run=run: server.status(run) in ("SUCCESS", "FAILURE"), 600)
        assert server.status(run) == "SUCCESS", server.log.read_text()[-2000:]


def worker_of(server: Checkout, run_id: str) -> int | None:
    with server.toy.instance() as instance:
        for entry in instance.all_logs(run_id):
            if "teps in process (pid:" in entry.message:
                return int(entry.message.rpartition("pid: ")[2].rstrip(")"))


def disturb(server: Checkout, what: str, run: str, after: float) -> str:
    """Kill once, and return what was left."""
    time.sleep(after)
    store, done = server.store, len(server.store.assets())
    if what == "dagster dev":
        server.kill()
    else:
        targets = server.stages() if what == "training child" else [worker_of(server, run)]
        for pid in filter(None, targets):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if what == "training child":
        server.wait(lambda: server.status(run) != "STARTED" or server.stages(), 60)
        said = f"run continues by itself, {'a' if server.stages() else 'no'} stage at work"
        server.cancel(run)
        server.wait(lambda: server.status(run) in ("CANCELED", "SUCCESS", "FAILURE"), 60)
    elif what == "run worker":
        server.wait(lambda: server.status(run) in ("FAILURE", "SUCCESS"), 120)
        said = f"run marked {server.status(run)}"
    else:
        said = f"run left as {server.status(run)}"
    deadline = time.monotonic() + 45
    while server.stages() and time.monotonic() < deadline:
        time.sleep(0.5)
    if what == "dagster dev":
        subprocess.run(
            [sys.executable, "-m", "tokenuq_pipeline.runtime.paths"],
            env=server.environment,
            cwd=ROOT,
            capture_output=True,
        )
        said += f", then {server.status(run)} by the next start"
    orphans, wrong = server.stages(), server.problems()
    steps = [path.name for path in store.home.glob(".checkpoints/**/checkpoint-*")]
    return (
        f"{said}; {done} assets complete before, orphans {orphans or 'none'}, damaged tables {wrong or 'none'}, "
        f"checkpoints {steps or 'none'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    REPOSITORY["repositoryLocationName"] = "tokenuq"
    draw, targets = random.Random(options.seed), ("training child", "run worker", "dagster dev")
    for name in ("calm", "killed"):
        prepare(options.folder / name)
    with Checkout(options.folder / "calm") as calm:
        run_to_the_end(calm)
        expected = versions(calm.store)
    server, number = Checkout(options.folder / "killed"), 0
    while number < options.kills:
        with server:
            while number < options.kills:
                run = launch_stale(server)
                if run is None:
                    print(f"all made after {number} kills", flush=True)
                    number = options.kills
                    break
                server.wait(lambda run=run: server.status(run) != "QUEUED", 60)
                what, after = targets[number % 3], draw.uniform(3, 30)
                number += 1
                print(f"{number:>2} {what} after {after:.0f} s: {disturb(server, what, run, after)}", flush=True)
                if what == "dagster dev":
                    break
    with server:
        run_to_the_end(server)
    found = versions(server.store)
    odd = [name for name in expected if expected[name] != found.get(name)]
    print(f"{len(expected)} assets, data versions that differ from the undisturbed store: {odd or 'none'}")


if __name__ == "__main__":
    main()
