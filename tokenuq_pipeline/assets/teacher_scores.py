"""What one child process measures of the teacher: token losses, hidden states, BALD, reference evaluation."""

from typing import Any

from tokenuq_ml.config import REFERENCE_ROWS, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.evaluation_inputs import evaluation_files, evaluation_inputs, evaluation_tables
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.runtime.store_layout import partition_path, table_path


def teacher_score_assets(config: Config, study: StudySpec) -> list[StageAsset]:
    """Return the assets in the order in which the child makes them."""
    name, pairwise = study.name, study.evaluation.pairwise
    versus = None if pairwise is None else pairwise.versus
    return [
        _asset(
            config,
            study,
            stage="token_losses",
            description="One row per response token of every split: loss, entropy and rank, by the teacher and by the "
            "base model.",
            kinds=frozenset({"python", "torch", "parquet"}),
            table="token_losses",
            outputs=_tables(name, "token_losses", "token_alternatives") | _plots(name, "token_losses"),
        ),
        _asset(
            config,
            study,
            stage="teacher_hidden",
            description="The teacher's hidden states and mean output embeddings on the train split, so that students "
            "distil without running the teacher.",
            kinds=frozenset({"python", "torch"}),
            outputs={"teacher_hidden": inputs.teacher_hidden(name).path},
        ),
        _asset(
            config,
            study,
            stage="reference_evaluation",
            description="The base model and the teacher, measured as the students are: the first rows of the report.",
            kinds=frozenset({"python", "torch", "parquet"}),
            table="evaluations",
            outputs={
                f"{table}_{row}": table_path(table, study=name, ablation=row)
                for table in evaluation_tables(study.evaluation, versus in REFERENCE_ROWS, is_judged=False)
                for row in REFERENCE_ROWS
                if table != "pairwise_answers" or row == versus
            }
            | _plots(name, "reference_evaluation"),
            more_inputs=(*inputs.truth(config, study), *evaluation_inputs(study.evaluation)),
            files=evaluation_files(study.evaluation),
        ),
        _asset(
            config,
            study,
            stage="token_uncertainty",
            description=f"BALD of every response token, from {study.uncertainty.samples} passes of Monte-Carlo "
            "dropout. Joins one to one with token_losses.",
            kinds=frozenset({"python", "torch", "parquet"}),
            table="token_uncertainty",
            outputs=_tables(name, "token_uncertainty", "bald_reference") | _plots(name, "token_uncertainty"),
        ),
    ]


def _asset(
    config: Config, study: StudySpec, stage: str, more_inputs: tuple[Input, ...] = (), **parts: Any
) -> StageAsset:
    return StageAsset(
        stage=stage,
        path=(study.name, stage),
        study=study.name,
        fields=study_fields(config, study, stage),
        needs_model=True,
        inputs=(
            inputs.model(study.model),
            inputs.study_table(study.name, "tokenized_dataset"),
            inputs.teacher_adapter(study.name, "adapter"),
            *more_inputs,
        ),
        **parts,
    )


def _tables(study: str, *tables: str) -> dict[str, str]:
    return {table: table_path(table, study=study) for table in tables}


def _plots(study: str, stage: str) -> dict[str, str]:
    return {"plots": partition_path("plots", study=study, stage=stage)}
