"""What stages read: the name in the request, the path in the store, and the asset that makes it."""

from dataclasses import dataclass

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_pipeline.runtime.store_layout import partition_path, table_path

AssetPath = tuple[str, ...]
"""The parts of an asset's key."""


@dataclass(frozen=True)
class Input:
    """One input of a stage."""

    name: str
    path: str
    """Relative to the store."""
    asset: AssetPath
    not_read: tuple[str, ...] = ()
    """Patterns of files that the stage does not read, so that they are not hashed for it."""
    optional: bool = False
    """The stage reads it if it was made. Its asset is made for other reasons, if at all."""
    described: bool = False
    """The stage also gets what the manifest of the asset says of its making."""


def model(name: str, as_name: str = "model") -> Input:
    """Return a base model, under the name that the stage knows it by."""
    return Input(as_name, f"models/{name}", ("models", name))


def model_without_weights(name: str) -> Input:
    """Return a base model of which the stage reads the configuration and the tokenizer only."""
    return Input("model", f"models/{name}", ("models", name), not_read=("*.safetensors",))


def examples(*datasets: str) -> tuple[Input, ...]:
    """Return the examples of datasets."""
    return tuple(
        Input(f"examples/{name}", table_path("examples", dataset=name), ("datasets", name)) for name in datasets
    )


MADE_BY = {
    "token_truth": "tokenized_dataset",
    "true_divergence_over_training": "true_divergence",
    "truth_ranking": "uncertainty_analysis",
    "estimator_costs": "uncertainty_estimates",
}
"""Table of a study -> the stage that makes it, if it has another name."""


def study_table(study: str, table: str, stage: str | None = None) -> Input:
    """Return a table of a study, made by the stage of the same name unless `MADE_BY` or the caller names another."""
    return Input(table, table_path(table, study=study), (study, stage or MADE_BY.get(table, table)))


def truth(config: Config, study: StudySpec) -> tuple[Input, ...]:
    """Return the true distributions of the study's tokens; nothing if they are not known."""
    return (study_table(study.name, "token_truth"),) if config.has_truth(study) else ()


def teacher_adapter(study: str, as_name: str) -> Input:
    """Return the teacher's adapter, under the name that the stage knows it by."""
    return Input(as_name, teacher_adapter_path(study), (study, "baseline_teacher"))


def teacher_snapshots_path(study: str) -> str:
    """Return the folder of the teacher's adapters at shares of its training."""
    return f"{partition_path('baseline_teacher', study=study)}/snapshots"


def teacher_hidden(study: str) -> Input:
    """Return the teacher's cached hidden states."""
    return Input("teacher_hidden", partition_path("teacher_hidden", study=study), (study, "teacher_hidden"))


def row_table(study: str, table: str, row: str, stage: AssetPath) -> Input:
    """Return a table of one row of the report: of an ablation, the teacher or the base model.

    Args:
        study: name of the study.
        table: name of the table; the input is called `<table>/<row>`.
        row: name of the ablation, or `teacher` or `base`.
        stage: path of the asset below the study.
    """
    return Input(f"{table}/{row}", table_path(table, study=study, ablation=row), (study, *stage))


def teacher_adapter_path(study: str) -> str:
    """Return the path of the teacher's adapter."""
    return f"{partition_path('baseline_teacher', study=study)}/adapter"


def student_path(study: str, ablation: str) -> str:
    """Return the folder of a student's adapter and snapshots."""
    return partition_path("student", study=study, ablation=ablation)


def costs_path(study: str, ablation: str) -> str:
    """Return the folder with the cost record of a student's training: timings, so not part of a data version."""
    return partition_path("costs", study=study, ablation=ablation)
