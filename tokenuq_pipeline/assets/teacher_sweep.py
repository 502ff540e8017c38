"""`<study>/teacher_sweep`: which of the candidate teachers is taken, and what the study's teacher is then read from."""

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.further_teachers import CANDIDATE
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.runtime.store_layout import (
    candidate_adapter_path,
    candidate_snapshots_path,
    table_path,
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
            inputs.row_table(name, "validation_losses", row, (row, CANDIDATE)) for row in study.teacher_candidates
        ),
    )


def candidate_inputs(config: Config, study: StudySpec) -> tuple[Input, ...]:
    """Return what the study's teacher is taken from: the comparison, and every candidate."""
    name, found = study.name, []
    for row in study.teacher_candidates:
        found.append(Input(f"adapter/{row}", candidate_adapter_path(name, row), (name, row, CANDIDATE)))
        found.append(inputs.row_table(name, "training_log", row, (row, CANDIDATE)))
        if config.has_truth(study):
            found.append(Input(f"snapshots/{row}", candidate_snapshots_path(name, row), (name, row, CANDIDATE)))
    return (inputs.study_table(name, "teacher_candidates", "teacher_sweep"), *found)
