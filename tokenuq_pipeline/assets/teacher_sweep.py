"""`<study>/<row>/candidate_teacher` and `<study>/teacher_sweep`: teachers at several settings, and which is taken."""

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import candidate_fields, study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.assets.training_checks import training_is_finite_check
from tokenuq_pipeline.runtime.store_layout import (
    candidate_adapter_path,
    candidate_snapshots_path,
    partition_path,
    table_path,
)

STAGE = "candidate_teacher"


def candidate_teacher(config: Config, study: StudySpec, row: str) -> StageAsset:
    """Return the asset of one setting; `row` is a key of `StudySpec.teacher_candidates`."""
    name, setting = study.name, study.teacher_candidates[row]
    adapter = candidate_adapter_path(name, row)
    return StageAsset(
        stage=STAGE,
        path=(name, row, STAGE),
        study=name,
        ablation=row,
        fields=candidate_fields(config, study, row),
        description=f"A teacher trained with {setting.text}, and its loss on each validation example.",
        kinds=frozenset({"python", "torch"}),
        needs_model=True,
        table="validation_losses",
        outputs={
            "adapter": adapter,
            **({"snapshots": candidate_snapshots_path(name, row)} if config.has_truth(study) else {}),
            "training_log": table_path("training_log", study=name, ablation=row),
            "validation_losses": table_path("validation_losses", study=name, ablation=row),
            "plots": partition_path("plots", study=name, ablation=row, stage=STAGE),
        },
        inputs=(inputs.model(study.model), inputs.study_table(name, "tokenized_dataset")),
        checks=(training_is_finite_check(name, row, adapter, "training_log", asset=f"{name}/{row}/{STAGE}"),),
    )


def teacher_sweep(config: Config, study: StudySpec) -> StageAsset:
    """Return the asset that compares the candidates."""
    name = study.name
    return StageAsset(
        stage="teacher_sweep",
        path=(name, "teacher_sweep"),
        study=name,
        fields=study_fields(config, study, "teacher_sweep"),
        description="The validation loss of each candidate teacher. The one with the lowest is the study's teacher.",
        kinds=frozenset({"python", "polars", "parquet"}),
        table="teacher_candidates",
        outputs={"teacher_candidates": table_path("teacher_candidates", study=name)},
        inputs=tuple(
            inputs.row_table(name, "validation_losses", row, (row, STAGE)) for row in study.teacher_candidates
        ),
    )


def candidate_inputs(config: Config, study: StudySpec) -> tuple[Input, ...]:
    """Return what the study's teacher is taken from: the comparison, and every candidate."""
    name, found = study.name, []
    for row in study.teacher_candidates:
        found.append(Input(f"adapter/{row}", candidate_adapter_path(name, row), (name, row, STAGE)))
        found.append(inputs.row_table(name, "training_log", row, (row, STAGE)))
        if config.has_truth(study):
            found.append(Input(f"snapshots/{row}", candidate_snapshots_path(name, row), (name, row, STAGE)))
    return (inputs.study_table(name, "teacher_candidates", "teacher_sweep"), *found)
