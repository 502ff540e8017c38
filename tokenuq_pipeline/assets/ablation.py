"""`<study>/<ablation>/...`, made by one child process: the student, its evaluation, its curriculum."""

from typing import Any

from tokenuq_ml.config import AblationSpec, StudySpec
from tokenuq_ml.config.ablation_text import ablation_sentence
from tokenuq_ml.config.families import is_measured_on_validation
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import ablation_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.evaluation_inputs import (
    evaluation_files,
    evaluation_inputs,
    evaluation_tables,
    versus_input,
    versus_of,
)
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.assets.selection_checks import selected_share_check
from tokenuq_pipeline.assets.training_checks import training_is_finite_check
from tokenuq_pipeline.runtime.store_layout import partition_path, table_path


def ablation_assets(config: Config, study: StudySpec, ablation: AblationSpec) -> list[StageAsset]:
    """Return the assets in the order in which the child makes them."""
    return [
        _student(config, study, ablation),
        _evaluation(config, study, ablation),
        _curriculum(config, study, ablation),
    ]


def _student(config: Config, study: StudySpec, ablation: AblationSpec) -> StageAsset:
    name = study.name
    return _asset(
        config,
        study,
        ablation,
        stage="student",
        description=f"{ablation_sentence(ablation)} Holds the adapter, the training log and the selected tokens.",
        kinds=frozenset({"python", "torch"}),
        table="training_log",
        outputs={
            **_student_outputs(name, ablation.name),
            **_tables(name, ablation.name, "training_log"),
            **_plots(name, ablation.name, "student"),
            "costs": inputs.costs_path(name, ablation.name),
        },
        inputs=(
            inputs.model(study.model),
            inputs.study_table(name, "tokenized_dataset"),
            *_teacher(study, ablation),
            *(inputs.study_table(name, table) for table in ablation.tables_read),
        ),
        checks=(
            training_is_finite_check(
                name,
                ablation.name,
                _student_outputs(name, ablation.name)["adapter"],
                "training_log",
                "selections",
            ),
            selected_share_check(name, ablation),
        ),
    )


def _evaluation(config: Config, study: StudySpec, ablation: AblationSpec) -> StageAsset:
    name, ablations = study.name, {one: config.ablations[one] for one in study.ablations}
    is_one_of_several = is_measured_on_validation(ablation, ablations)
    is_paired = study.evaluation.pairwise is not None
    versus = versus_of(config, study, ablation.name) if is_paired else None
    tables = evaluation_tables(study.evaluation, is_paired and versus is None, versus is not None)
    return _asset(
        config,
        study,
        ablation,
        stage="evaluation",
        description="One row per metric of the student, each with a bootstrap confidence interval.",
        kinds=frozenset({"python", "torch", "parquet"}),
        table="evaluations",
        outputs={
            **_tables(name, ablation.name, *tables),
            **(_tables(name, ablation.name, "validation_losses") if is_one_of_several else {}),
            **_plots(name, ablation.name, "evaluation"),
        },
        inputs=(
            *_trained_student(name, ablation.name),
            # The student's loss and entropy are compared with the teacher's.
            inputs.study_table(name, "token_losses"),
            inputs.model(study.model),
            inputs.study_table(name, "tokenized_dataset"),
            *inputs.truth(config, study),
            *evaluation_inputs(study.evaluation),
            *([versus_input(study, versus)] if versus is not None else []),
        ),
        files=evaluation_files(study.evaluation),
    )


def _curriculum(config: Config, study: StudySpec, ablation: AblationSpec) -> StageAsset:
    name = study.name
    return _asset(
        config,
        study,
        ablation,
        stage="curriculum",
        description="Token categories that were selected over the course of training; loss and BALD of a fixed sample.",
        kinds=frozenset({"python", "torch", "parquet"}),
        table="curriculum",
        outputs={
            **_tables(name, ablation.name, "curriculum", "curriculum_uncertainty"),
            **_plots(name, ablation.name, "curriculum"),
        },
        inputs=(
            *_trained_student(name, ablation.name),
            inputs.study_table(name, "token_losses"),
            inputs.model(study.model),
            inputs.study_table(name, "tokenized_dataset"),
        ),
    )


def _asset(config: Config, study: StudySpec, ablation: AblationSpec, stage: str, **parts: Any) -> StageAsset:
    return StageAsset(
        stage=stage,
        path=(study.name, ablation.name, stage),
        study=study.name,
        ablation=ablation.name,
        fields=ablation_fields(config, study, ablation, stage),
        needs_model=True,
        **parts,
    )


def _teacher(study: StudySpec, ablation: AblationSpec) -> tuple[Input, ...]:
    """Return the study's teacher if the student distils from it: its adapter, and its states if they are cached.

    The adapter is read in both cases, because the student rejects a cache of another teacher.
    """
    if ablation.distils_from != "baseline":
        return ()
    adapter = inputs.teacher_adapter(study.name, "teacher")
    return (adapter, inputs.teacher_hidden(study.name)) if study.teacher_states == "cached" else (adapter,)


def _student_outputs(study: str, ablation: str) -> dict[str, str]:
    folder = inputs.student_path(study, ablation)
    return {
        "adapter": f"{folder}/adapter",
        "snapshots": f"{folder}/snapshots",
        **_tables(study, ablation, "selections"),
    }


def _trained_student(study: str, ablation: str) -> tuple[Input, ...]:
    outputs = _student_outputs(study, ablation)
    return tuple(Input(name, path, (study, ablation, "student")) for name, path in outputs.items())


def _tables(study: str, ablation: str, *tables: str) -> dict[str, str]:
    return {table: table_path(table, study=study, ablation=ablation) for table in tables}


def _plots(study: str, ablation: str, stage: str) -> dict[str, str]:
    return {"plots": partition_path("plots", study=study, ablation=ablation, stage=stage)}
