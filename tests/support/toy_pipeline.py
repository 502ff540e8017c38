"""A toy study on fake stages: its configuration, definitions, a temporary instance and store."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from tests.support import fake_stage
from tests.support.paths import ROOT
from tokenuq_ml.config import AblationSpec, DatasetSpec, DistillSpec, ModelSpec, ObjectiveSpec, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import curate_dataset, reporters
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.definitions import build_defs
from tokenuq_pipeline.runtime.dagster_internals import forget_definitions_storage
from tokenuq_pipeline.runtime.launcher import StageFailure
from tokenuq_pipeline.runtime.store import Store

STUDY = "study"


def toy_config(quantile: float = 0.25, **study) -> Config:
    """Two ablations: `mle`, and `top`, which distils the rest."""
    ablations = {
        "mle": AblationSpec(name="mle", select="all"),
        "top": AblationSpec(
            name="top",
            select={"by": "loss", "quantile": quantile},
            rest=ObjectiveSpec(kind="distill", distill=DistillSpec()),
        ),
    }
    datasets = {
        "toy": DatasetSpec(
            name="toy", format="reasoning_gym", task="x", sizes={"train": 3, "validation": 2, "test": 2}
        ),
        "extra": DatasetSpec(name="extra", format="messages", path="/nowhere", sizes={"ood": 2}),
    }
    spec = {"name": STUDY, "model": "tiny", "dataset": "toy", "ood": ["extra"], "ablations": list(ablations), **study}
    return Config(
        models={"tiny": ModelSpec(name="tiny", source="path", path="/nowhere")},
        datasets=datasets,
        studies={STUDY: StudySpec(**spec)},
        ablations=ablations,
    )


def config_with(tmp_path, **changes):
    """The toy study, its `extra` data in a file of its own."""
    path = tmp_path / "extra.jsonl"
    if not path.exists():
        path.write_text('{"rows": 1}\n')
    config = toy_config(**changes)
    config.datasets["extra"] = DatasetSpec(name="extra", format="messages", path=str(path), sizes={"ood": 2})
    return config


class FakeStagesInProcess(dg.ConfigurableResource):
    """Fake stages without a child process each: for tests of what is run, not of how. Datasets are really curated."""

    def run(self, context, request, staging, lease):
        reporter = Reported(context)
        try:
            program = curate_dataset if request.entrypoint == "curate_dataset" else fake_stage
            program.run(request, reporter)
        except InputError as error:
            yield from reporter.results
            raise StageFailure(str(error)) from None
        except RuntimeError as error:
            yield from reporter.results
            raise StageFailure(f"ended with exit code 1: {error}") from None
        yield from reporter.results


class Reported:
    """A reporter that keeps the results."""

    def __init__(self, context):
        self.info = self.warning = context.log.info
        self.results = []

    def count_tokens(self, tokens):
        pass

    def done(self, result):
        self.results.append(reporters.with_usage(result, 0.0))


@dataclass
class Toy:
    """A folder with a store and a Dagster home."""

    folder: Path
    store_folder: Path | None = None
    """By default in `folder`."""

    @property
    def store(self) -> Store:
        return Store(self.store_folder or self.folder / "store")

    def instance(self) -> dg.DagsterInstance:
        home = self.folder / "dagster_home"
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "dagster.yaml").exists():
            (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        return dg.DagsterInstance.from_config(str(home))

    def defs(self, config: Config | None = None, launcher: dg.ConfigurableResource | None = None) -> dg.Definitions:
        forget_definitions_storage()
        return build_defs(config or toy_config(), self.store.home, launcher or FakeStagesInProcess())

    def materialise(self, config: Config) -> None:
        """Run the study as `tokenuq run` does, and check that it succeeds."""
        with self.instance() as instance:
            assert run_study(self.defs(config), config, STUDY, [], instance, self.store) == 0

    def copy(self, folder: Path) -> "Toy":
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Toy(folder)


def fake_environment(folder: Path) -> dict[str, str]:
    """Environment in which `fake_entrypoints` can be imported by a child."""
    if not (folder / "fake_entrypoints").exists():
        fake_stage.write_package(folder)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
