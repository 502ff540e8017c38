"""The requests of the tiny study's stages, and the same stages again as programs of one process or of several."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import yaml

from tests.support.paths import ROOT
from tests.support.stage_results import results_in
from tests.support.tiny_study import CONFIG, STUDY, StagesInProcess, write_inputs
from tokenuq_ml.config.load import load_config
from tokenuq_ml.stages.request import AssetResult, StageRequest
from tokenuq_pipeline.definitions import build_defs
from tokenuq_pipeline.runtime.launch_command import stage_command
from tokenuq_pipeline.runtime.store import Store

ABLATION = "paper_top25"
REQUESTS: list[StageRequest] = []


class NotedRequests(StagesInProcess):
    """Runs the stages in this process, and notes their requests."""

    def run(self, context, request, staging, lease):
        REQUESTS.append(request.model_copy(deep=True))
        yield from super().run(context, request, staging, lease)


def study_requests(folder: Path) -> dict[str, StageRequest]:
    """Make the tiny study with one ablation; return the request of each entry point."""
    write_inputs(folder)
    evaluation = CONFIG["studies"][STUDY]["evaluation"]
    evaluation = {"bootstrap": 20, "ifeval": evaluation["ifeval"], "alpaca_eval": evaluation["alpaca_eval"]}
    study = {**CONFIG["studies"][STUDY], "ablations": [ABLATION], "evaluation": evaluation}
    # Every rank draws masks of its own, so that with dropout two ranks train another student.
    study["train"] = {**study["train"], "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}
    (folder / "studies.yaml").write_text(yaml.safe_dump({STUDY: study}))
    REQUESTS.clear()
    defs = build_defs(load_config(folder), Store(folder / "store").home, NotedRequests())
    with dg.DagsterInstance.ephemeral() as instance:
        assert defs.resolve_job_def(STUDY).execute_in_process(instance=instance).success
    return {request.entrypoint: request for request in REQUESTS}


@dataclass
class Rerun:
    """A stage that runs once more, in folders of its own."""

    request: StageRequest
    folder: Path
    processes: int = 1
    stages: tuple[str, ...] = ()
    """The assets to make; default: all of the request."""
    epochs: int | None = None
    """Epochs of the training; default: as requested."""
    sharding: str = "none"
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, command: list[str] | None = None) -> subprocess.Popen:
        """Start the stage as a launcher does, or by another command, which gets the request's file."""
        assets = {}
        for stage, asset in self.request.assets.items():
            if self.stages and stage not in self.stages:
                continue
            outputs = {name: str(self.folder / stage / name) for name in asset.outputs}
            for output in outputs.values():
                Path(output).mkdir(parents=True, exist_ok=True)
            fields = asset.fields
            if self.epochs is not None:
                fields = {**fields, "train": {**fields["train"], "epochs": self.epochs}}
            assets[stage] = asset.model_copy(update={"outputs": outputs, "fields": fields})
        self.work_dir.mkdir(exist_ok=True)
        changed = {"assets": assets, "work_dir": str(self.work_dir), "sharding": self.sharding}
        request = self.request.model_copy(update=changed)
        request_file = self.folder / "request.json"
        request.write(request_file)
        if command is None:
            command = stage_command("tokenuq_ml.stages", request, request_file, self.processes)
        else:
            command = [*command, str(request_file)]
        environment = {**os.environ, "TOKENUQ_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command,
            env=environment | self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        return self.process

    @property
    def work_dir(self) -> Path:
        """The folder of checkpoints and caches."""
        return self.folder / "work"

    def finish(self) -> dict[str, AssetResult]:
        """Wait for the stage, which must end well; return its results by asset."""
        out, err = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, out[-2000:] + err[-6000:]
        return {result.stage: result for result in map(AssetResult.model_validate, results_in(out))}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    for name, request in study_requests(folder).items():
        request.write(folder / f"{name}.json")
