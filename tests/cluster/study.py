"""A study of real stages on a tiny model, whose runs are processes, with stages on this machine or on a cluster."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

from tests.support.paths import ROOT
from tests.support.tiny_study import CONFIG, STUDY, write_inputs

ABLATION, OTHER = "masked_mle_top25", "mle"
STUDENTS = [f"{STUDY}/{name}/student" for name in (ABLATION, OTHER)]
"""They need the same, and not each other."""
TEACHER, LOSSES = f"{STUDY}/baseline_teacher", f"{STUDY}/token_losses"
LONG_TRAINING = {"epochs": 60, "save_steps": 5, "learning_rate": 1e-3}
"""180 steps, so that there is a time in which a training can be interrupted, and small ones, for a sound model."""


class ClusterStudy:
    """The study in a folder: its inputs, its configuration, and a store.

    Args:
        folder: of Dagster's home.
        store: by default in `folder`.
        inputs: folder of the configuration and the data; by default `folder`, where they are written.
    """

    def __init__(self, folder: Path, store: Path | None = None, inputs: Path | None = None):
        self.folder, self.home, self.inputs = folder, store or folder / "store", inputs or folder
        self.log = folder / "runs.log"
        folder.mkdir(parents=True, exist_ok=True)
        if inputs is None:
            write_inputs(folder)
            study = CONFIG["studies"][STUDY] | {"ablations": [ABLATION, OTHER]}
            study["train"] = study["train"] | LONG_TRAINING
            (folder / "studies.yaml").write_text(yaml.safe_dump({STUDY: study}))
            (folder / "ablations.yaml").write_text(yaml.safe_dump(CONFIG["ablations"]))

    def take(self, other: "ClusterStudy", names: Iterable[str]) -> None:
        """Copy complete assets of another store, which a run then adopts."""
        for name in names:
            manifest = Path(".manifests", f"{name}.json")
            for place in (*json.loads((other.home / manifest).read_text())["outputs"].values(), manifest.as_posix()):
                source, target = other.home / place, self.home / place
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, target)

    def start(self, address: str | None, *assets: str, **environment: str) -> subprocess.Popen:
        """Start a run of the study, or of some assets.

        Args:
            address: of the cluster; None: stages are child processes.
            assets: names; by default all.
            environment: in addition to this process's.
        """
        own = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENUQ_", "RAY_"))}
        own |= {"TOKENUQ_HOME": str(self.home), "DAGSTER_HOME": str(self.folder / "dagster"), "HF_HUB_OFFLINE": "1"}
        # One thread per process on both sides: the number of threads is part of a sum's rounding.
        own |= {"OMP_NUM_THREADS": "1", "TOKENUQ_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if address:
            own |= {"TOKENUQ_LAUNCHER": "ray", "RAY_ADDRESS": address}
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.run", str(self.inputs), STUDY, *assets],
                env=own | environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def run(self, address: str | None, *assets: str, **environment: str) -> None:
        """Run the study, or some assets, and check that it succeeds."""
        assert self.start(address, *assets, **environment).wait(1200) == 0, self.said()[-6000:]

    def said(self) -> str:
        """Return what all runs have printed."""
        return self.log.read_text(errors="replace")

    def versions(self) -> dict[str, str]:
        """Return the data version of every asset."""
        manifests = self.home / ".manifests"
        found = {path.relative_to(manifests).with_suffix("").as_posix(): path for path in manifests.rglob("*.json")}
        return {name: json.loads(path.read_text())["data_version"] for name, path in sorted(found.items())}

    def overlap(self, first: str, second: str) -> float:
        """Return for how many seconds two assets were made at the same time, by Dagster's log."""
        import dagster as dg

        spans = []
        with dg.DagsterInstance.from_config(str(self.folder / "dagster")) as instance:
            for asset in (first, second):
                record = instance.fetch_materializations(dg.AssetKey(asset.split("/")), limit=1).records[0]
                entry = record.event_log_entry
                start = next(
                    one
                    for one in instance.all_logs(entry.run_id, of_type=dg.DagsterEventType.STEP_START)
                    if one.step_key == entry.step_key
                )
                spans.append((start.timestamp, entry.timestamp))
        return min(end for _, end in spans) - max(begin for begin, _ in spans)

    def work_dir(self, asset: str) -> Path:
        """Return the folder of checkpoints of an asset."""
        return self.home / ".checkpoints" / asset

    def checkpoint_of(self, asset: str) -> Path | None:
        """Return a complete checkpoint of an asset's training; None if there is none (yet)."""
        return next(self.work_dir(asset).rglob("checkpoint-*/COMPLETE"), None)
