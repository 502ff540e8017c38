"""`<study>/ablation_report`: the table of all arms, plots, one self-contained HTML page."""

from tokenuq_ml.config import REFERENCE_ROWS, TEACHER_ROW, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets.ablation import costs_path
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.store_paths import partition_path, table_path

EVALUATED = ("evaluations", "evaluation_examples")
PER_ABLATION = (
    *EVALUATED,
    "evaluation_tokens",
    "training_log",
    "selections",
    "curriculum",
    "curriculum_uncertainty",
)
PER_STUDY = ("tokenized_dataset", "token_losses", "token_uncertainty", "uncertainty_analysis")


def report_path(study: str) -> str:
    """Where the report lies."""
    return partition_path("ablation_report", study=study)


def ablation_report(config: Config, study: StudySpec) -> StageAsset:
    name = study.name

    def row(table: str, ablation: str) -> dict[str, str]:
        return {f"{table}/{ablation}": table_path(table, study=name, ablation=ablation)}

    inputs = {table: table_path(table, study=name) for table in PER_STUDY}
    inputs |= {table: table_path(table, study=name) for table in ("token_alternatives", "bald_reference")}
    datasets = (study.dataset, *study.ood)
    inputs |= {f"examples/{dataset}": table_path("examples", dataset=dataset) for dataset in datasets}
    for reference in REFERENCE_ROWS:
        for table in EVALUATED:
            inputs |= row(table, reference)
    inputs |= row("training_log", TEACHER_ROW)
    for ablation in study.ablations:
        for table in PER_ABLATION:
            inputs |= row(table, ablation)
        inputs[f"costs/{ablation}"] = costs_path(name, ablation)
    inputs["model"] = f"models/{study.model}"
    return StageAsset(
        stage="ablation_report",
        path=(name, "ablation_report"),
        study=name,
        follows_inputs=study.enabled,
        fields=study_fields(config, study, "ablation_report"),
        description="Base, teacher and every student side by side, over seeds and against mle, with intervals; "
        "the report as HTML.",
        kinds=frozenset({"python", "polars"}),
        outputs={"report": report_path(name)},
        inputs=inputs,
        deps=(
            ("models", study.model),
            *(("datasets", dataset) for dataset in datasets),
            *((name, stage) for stage in PER_STUDY),
            (name, "reference_evaluation"),
            (name, "baseline_teacher"),
            *((name, arm, stage) for arm in study.ablations for stage in ("student", "evaluation", "curriculum")),
        ),
    )
