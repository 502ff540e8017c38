"""The stages of a study: which fields of the specs each depends on, and how a child process is told.

A stage's fields decide its version: whatever is not in them cannot alter its result,
and nothing else may be read by it. This file knows neither where files lie nor how a
child is started.
"""

import json
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from tokenuq_ml.config import Config
from tokenuq_ml.specs import AblationSpec, StudySpec, spec_hash
from tokenuq_ml.user_code import source_hash

# A stage's revision is raised by hand when its code changes what it computes.
REVISIONS = {
    "models": 2,
    "datasets": 1,
    "tokenized_dataset": 1,
    "baseline_teacher": 3,
    "token_losses": 6,
    "teacher_hidden": 5,
    "token_uncertainty": 7,
    "reference_evaluation": 7,
    "uncertainty_analysis": 2,
    "student": 3,
    "curriculum": 5,
    "evaluation": 7,
    "ablation_report": 5,
}


def model_fields(config: Config, model: str) -> dict:
    """Fields of `models/<model>`."""
    return config.models[model].fields()


def dataset_fields(config: Config, dataset: str) -> dict:
    """Fields of `datasets/<dataset>`."""
    return config.datasets[dataset].fields()


def study_fields(config: Config, study: StudySpec, stage: str) -> dict:
    """Fields of `<study>/<stage>`: exactly what that stage may read of the specs."""
    training = {"model": study.model, "precision": study.precision.training}
    tables = {"model": study.model, "precision": study.precision.tables}
    if stage == "tokenized_dataset":
        return {"model": study.model, "dataset": study.dataset, "ood": list(study.ood), "max_length": study.max_length}
    if stage == "baseline_teacher":
        return {**training, "train": study.train.fields(), "seed": study.teacher_seed}
    if stage == "token_losses":
        return tables
    if stage == "teacher_hidden":
        # Students read it in training: a change of the tables' precision is to retrain nothing.
        return {**training, "teacher_cache_gigabytes": study.teacher_cache_gigabytes}
    if stage == "token_uncertainty":
        # Float32, whatever the study's precision is.
        return {"model": study.model, "uncertainty": study.uncertainty.fields()}
    if stage == "reference_evaluation":
        return {**tables, "evaluation": study.evaluation.fields()}
    if stage == "uncertainty_analysis":
        return {"evaluation": study.evaluation.interval_fields()}
    if stage == "ablation_report":
        return {
            # Who starts a run alters nothing in its report.
            "study": {name: value for name, value in study.fields().items() if name != "enabled"},
            "ablations": {name: config.ablations[name].fields() for name in study.ablations},
        }
    raise KeyError(stage)


def ablation_fields(config: Config, study: StudySpec, ablation: AblationSpec, stage: str) -> dict:
    """Fields of `<study>/<ablation>/<stage>`."""
    identity = {"family": ablation.family, "seed": ablation.seed}
    if stage == "student":
        return {
            "model": study.model,
            "precision": study.precision.training,
            "train": study.train.fields(),
            "ablation": ablation.fields(),
            # A user's own functions are part of the objective.
            "functions": {name: source_hash(name) for name in ablation.functions},
            "teacher_states": study.teacher_states,
            "fractions": list(study.curriculum.fractions),
        }
    if stage == "curriculum":
        return {
            "model": study.model,
            "curriculum": study.curriculum.fields(),
            "uncertainty": study.uncertainty.fields(),
        }
    if stage == "evaluation":
        precision = {"model": study.model, "precision": study.precision.tables}
        return {**precision, **identity, "evaluation": study.evaluation.fields()}
    raise KeyError(stage)


def code_version(stage: str, fields: dict) -> str:
    """`<revision>-<hash of the fields>`: what Dagster compares to find a stale asset."""
    return f"{REVISIONS[stage]}-{spec_hash(fields)}"


class AssetRequest(BaseModel):
    """One asset that a child is to make."""

    model_config = ConfigDict(extra="forbid")
    fields: dict
    code_version: str
    outputs: dict[str, str]
    """Output name (a table, or `adapter`, `weights`, ...) -> empty folder to fill."""

    @property
    def spec_hash(self) -> str:
        return spec_hash(self.fields)

    @property
    def stamp(self) -> dict[str, str]:
        """What every file of the asset says it was made from; the keywords of `write_table`."""
        return {"spec_hash": self.spec_hash, "code_version": self.code_version}


class StageRequest(BaseModel):
    """What a child process reads: the assets to make, the files to make them from."""

    model_config = ConfigDict(extra="forbid")
    entrypoint: str
    study: str | None = None
    ablation: str | None = None
    assets: dict[str, AssetRequest]
    """Stage name -> request. A child skips the stages that are not asked for."""
    inputs: dict[str, str]
    """Input name -> folder or file of an asset that is there already."""
    work_dir: str
    """Private to this stage and fields; kept between runs, so that training resumes."""

    @classmethod
    def read(cls, path: str | Path) -> "StageRequest":
        return cls.model_validate_json(Path(path).read_text())

    def write(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.model_dump(mode="json"), indent=1))


class CheckOutcome(BaseModel):
    """Whether a check passed, in words, with its figures."""

    model_config = ConfigDict(extra="forbid")
    passed: bool
    description: str
    figures: dict[str, float | int | str | None] = {}


class AssetResult(BaseModel):
    """What a child reports of one asset, once its outputs are whole."""

    model_config = ConfigDict(extra="forbid")
    stage: str
    data_version: str
    """Hash of the logical content: rows and tensors, never bytes of files, times or paths."""
    metrics: dict[str, float | int | str | bool | None] = {}
    """Key figures, shown as metadata. Float, int, str, bool."""
    plots: dict[str, str] = {}
    """Title -> a PNG inside one of the outputs, as `<output>/<file>`."""
    checks: dict[str, CheckOutcome] = {}
    """Checks that need the model, and so were made where it is; by the name of the asset check."""
    packages: dict[str, str] = {}
    """Versions of what it was computed with; filled in by the process that reports."""


class Reporter(Protocol):
    """Where a stage says how it goes: Dagster Pipes, or the terminal."""

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def count_tokens(self, tokens: int) -> None:
        """So many more tokens went through the model: what `tokens_per_second` of the next result is made of."""

    def done(self, result: AssetResult) -> None: ...
