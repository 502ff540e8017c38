"""What is measured of the teacher, by one child: token losses, hidden states, BALD, reference evaluation."""

from tokenuq_ml.config import REFERENCE_ROWS, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.baseline_teacher import teacher_adapter
from tokenuq_pipeline.assets.evaluation_inputs import evaluation_sources, evaluation_tables
from tokenuq_pipeline.runtime.store_paths import partition_path, table_path


def teacher_score_assets(config: Config, study: StudySpec) -> list[StageAsset]:
    """In the order that the child makes them."""
    name = study.name
    inputs = {
        "model": f"models/{study.model}",
        "adapter": teacher_adapter(name),
        "tokenized_dataset": table_path("tokenized_dataset", study=name),
    }
    deps = (("models", study.model), (name, "tokenized_dataset"), (name, "baseline_teacher"))

    def asset(stage: str, description: str, kinds: set[str], outputs: dict[str, str], **more) -> StageAsset:
        return StageAsset(
            stage=stage,
            path=(name, stage),
            study=name,
            fields=study_fields(config, study, stage),
            description=description,
            kinds=frozenset(kinds),
            needs_model=True,
            outputs=outputs,
            **{"inputs": inputs, "deps": deps, **more},
        )

    sources = evaluation_sources(study.evaluation)
    evaluated = {
        f"{table}_{row}": table_path(table, study=name, ablation=row)
        for table in evaluation_tables(study.evaluation)
        for row in REFERENCE_ROWS
    }
    evaluated["plots"] = partition_path("plots", study=name, stage="reference_evaluation")
    return [
        asset(
            "token_losses",
            "One row a response token of every split: loss, entropy and rank, of the teacher and of the base model.",
            {"python", "torch", "parquet"},
            {
                **{table: table_path(table, study=name) for table in ("token_losses", "token_alternatives")},
                "plots": partition_path("plots", study=name, stage="token_losses"),
            },
            table="token_losses",
        ),
        asset(
            "teacher_hidden",
            "The teacher's hidden states and mean output embeddings on the train split: it need not run to distil.",
            {"python", "torch"},
            {"teacher_hidden": partition_path("teacher_hidden", study=name)},
        ),
        asset(
            "reference_evaluation",
            "The base model and the teacher by the students' metrics: the report's top rows.",
            {"python", "torch", "parquet"},
            evaluated,
            table="evaluations",
            inputs=inputs | sources.inputs,
            deps=tuple(dict.fromkeys((*deps, *sources.deps))),
        ),
        asset(
            "token_uncertainty",
            f"BALD of every response token: {study.uncertainty.samples} passes of Monte-Carlo dropout. "
            "Joins one to one with token_losses.",
            {"python", "torch", "parquet"},
            {
                **{table: table_path(table, study=name) for table in ("token_uncertainty", "bald_reference")},
                "plots": partition_path("plots", study=name, stage="token_uncertainty"),
            },
            table="token_uncertainty",
        ),
    ]
