"""`<study>/<row>/candidate_teacher` and `<study>/<row>/ensemble_teacher`: teachers next to the study's own.

A candidate differs from the others in a setting of its training, a member of the ensemble in its seed.
"""

from typing import Any

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import candidate_fields, ensemble_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.assets.training_checks import training_is_finite_check
from tokenuq_pipeline.runtime.store_layout import (
    candidate_adapter_path,
    candidate_snapshots_path,
    ensemble_adapter_path,
    partition_path,
    table_path,
)

CANDIDATE, MEMBER = "candidate_teacher", "ensemble_teacher"


def candidate_teacher(config: Config, study: StudySpec, row: str) -> StageAsset:
    """Return the asset of one setting; `row` is a key of `StudySpec.teacher_candidates`."""
    has_truth = config.has_truth(study)
    return _further_teacher(
        study,
        row,
        CANDIDATE,
        candidate_fields(config, study, row),
        f"A teacher trained with {study.teacher_candidates[row].text}, and its loss on each validation example.",
        {
            "adapter": candidate_adapter_path(study.name, row),
            **({"snapshots": candidate_snapshots_path(study.name, row)} if has_truth else {}),
        },
        ("training_log", "validation_losses"),
    )


def ensemble_teacher(config: Config, study: StudySpec, row: str) -> StageAsset:
    """Return the asset of one member; `row` is a key of `StudySpec.ensemble_teachers`."""
    seed = study.ensemble_teachers[row]
    taken = inputs.study_table(study.name, "teacher_candidates", "teacher_sweep")
    return _further_teacher(
        study,
        row,
        MEMBER,
        ensemble_fields(config, study, row),
        f"The study's teacher trained with seed {seed}: other initial weights, other order of the data.",
        {"adapter": ensemble_adapter_path(study.name, row)},
        ("training_log",),
        # The setting that the study's own teacher has.
        (taken,) if study.teacher_sweep else (),
    )


def _further_teacher(
    study: StudySpec,
    row: str,
    stage: str,
    fields: dict[str, Any],
    description: str,
    adapters: dict[str, str],
    tables: tuple[str, ...],
    settings: tuple[Input, ...] = (),
) -> StageAsset:
    """Return the asset of a teacher that is trained as the study's own.

    Args:
        study: the study.
        row: names the teacher.
        stage: the program that trains it.
        fields: what its version depends on.
        description: a sentence for the UI.
        adapters: its weights, and snapshots of them, by output.
        tables: its tables; the last one is shown in the UI.
        settings: inputs in addition to the model and the dataset.
    """
    name = study.name
    return StageAsset(
        stage=stage,
        path=(name, row, stage),
        study=name,
        ablation=row,
        fields=fields,
        description=description,
        kinds=frozenset({"python", "torch"}),
        needs_model=True,
        table=tables[-1],
        outputs={
            **adapters,
            **{table: table_path(table, study=name, ablation=row) for table in tables},
            "plots": partition_path("plots", study=name, ablation=row, stage=stage),
        },
        inputs=(inputs.model(study.model), inputs.study_table(name, "tokenized_dataset"), *settings),
        checks=(
            training_is_finite_check(name, row, adapters["adapter"], "training_log", asset=f"{name}/{row}/{stage}"),
        ),
    )
