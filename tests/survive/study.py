"""A tiny study of real stages in a folder of its own, what a calm run of it makes, and what differs from that."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.support.dev_server import STAGE_PACKAGES
from tests.support.paths import ROOT
from tests.support.processes import all_processes
from tests.support.tiny_study import CONFIG, write_inputs
from tokenuq_pipeline.runtime.processes import ZOMBIE
from tokenuq_pipeline.runtime.store import Store

STUDY = "survive"
ABLATIONS = {"mle": "s_mle", "paper_top25": "s_paper"}
EPOCHS, SAVE_STEPS = 30, 5
"""Long enough for a kill in the middle of a training; checkpoints often enough that a resumed one does little again."""
VOLATILE = ("costs/", "ablation_report/")
"""Folders whose files hold timings. Everything else is the same, byte for byte, in every run."""
BASE_MODEL = re.compile(rb"/[^\s\"]*/store/models/")
ORPHAN_S = 45.0
"""Seconds that processes of a killed run have to write a checkpoint and end."""


def write_config(folder: Path) -> None:
    """Write the configuration of the study, its model and its data."""
    folder.mkdir(parents=True)
    write_inputs(folder)
    study = json.loads(json.dumps(next(iter(CONFIG["studies"].values()))))
    study["train"] |= {"epochs": EPOCHS, "save_steps": SAVE_STEPS}
    study["ablations"] = list(ABLATIONS.values())
    del study["evaluation"]["alpaca_eval"]
    ablations = {name: CONFIG["ablations"][source] for source, name in ABLATIONS.items()}
    (folder / "studies.yaml").write_text(yaml.safe_dump({STUDY: study}))
    (folder / "ablations.yaml").write_text(yaml.safe_dump(ablations))


@dataclass
class TrialStudy:
    """The study in `folder`: its store and Dagster home, and the processes that work on them.

    All studies of the same parent folder share its `config`.
    """

    folder: Path
    home: Path | None = None
    """The store, if it is not `folder/store`."""
    more_environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.config.exists():
            write_config(self.config)

    @property
    def config(self) -> Path:
        return self.folder.parent / "config"

    @property
    def store(self) -> Store:
        return Store(self.home or self.folder / "store")

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "TOKENUQ_CONFIG": str(self.config),
            "TOKENUQ_HOME": str(self.store.home),
            "DAGSTER_HOME": str(self.folder / "dagster_home"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **self.more_environment,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `tokenuq` in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "tokenuq_pipeline.cli", *arguments],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def tokenuq(self, *arguments: str, seconds: float = 900) -> tuple[int, str]:
        """Run `tokenuq` to its end; return the exit code and what it printed."""
        process = self.start(*arguments)
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            return 124, printed + f"\nnot ended after {seconds:.0f} s"
        return process.returncode, printed

    def run(self) -> tuple[int, str]:
        """Bring the study up to date."""
        return self.tokenuq("run", "--study", STUDY)

    def stages(self) -> list[int]:
        """Return the pids of the stages at work on this study."""
        return [
            pid
            for pid, stat, command in all_processes()
            if any(name in command for name in STAGE_PACKAGES) and str(self.folder) in command and stat.state != ZOMBIE
        ]

    def wait_for_orphans(self) -> list[int]:
        """Wait until no stage is at work; return those that still are after `ORPHAN_S`."""
        deadline = time.monotonic() + ORPHAN_S
        while (left := self.stages()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def copy_to(self, folder: Path) -> "TrialStudy":
        """Copy store and Dagster home to another folder beside this one, in place of what that holds."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder, symlinks=True)
        return TrialStudy(folder)


@dataclass(frozen=True)
class Calm:
    """What an undisturbed run has made: data versions of assets, SHA-256 of files."""

    versions: dict[str, str]
    files: dict[str, str]

    @classmethod
    def of(cls, study: TrialStudy) -> "Calm":
        return cls(versions(study.store), files(study.store))

    def wrong(self, study: TrialStudy) -> list[str]:
        """Return how complete assets of a store differ from the undisturbed ones: in version, or in a file's bytes."""
        store, found = study.store, []
        for name, version in versions(store).items():
            if version != self.versions.get(name):
                found.append(f"{name} has data version {version}, not {self.versions.get(name)}")
            found += [f"{name}: {problem}" for problem in store.problems(name)]
        own = files(store)
        differ = [path for path, digest in own.items() if self.files.get(path, digest) != digest]
        return found + [f"{path} has other bytes" for path in differ]

    def missing(self, study: TrialStudy) -> list[str]:
        """Return the assets that the undisturbed run has made and this store has not."""
        return sorted(self.versions.keys() - versions(study.store).keys())


def versions(store: Store) -> dict[str, str]:
    """Return asset -> data version of every complete asset."""
    return {name: store.data_version(name) for name in store.assets() if store.is_complete(name)}


def files(store: Store) -> dict[str, str]:
    """Return path -> SHA-256 of every file that a complete asset lists, without the volatile ones."""
    found = {}
    for name in versions(store):
        for file in store.read_manifest(name).files:
            if not file.path.startswith(VOLATILE):
                # PEFT writes the absolute path of the base model into an adapter's folder.
                content = BASE_MODEL.sub(b"models/", store.path(file.path).read_bytes())
                found[file.path] = hashlib.sha256(content).hexdigest()
    return found
