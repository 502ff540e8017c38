"""`<study>/ablation_report`: the table of all ablations, plots, and one self-contained HTML page."""

from collections.abc import Iterator

from tokenuq_ml.config import REFERENCE_ROWS, TEACHER_ROW, StudySpec
from tokenuq_ml.config.families import is_measured_on_validation
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.runtime.store_layout import partition_path

PER_STUDY = {
    "tokenized_dataset": "tokenized_dataset",
    "token_losses": "token_losses",
    "token_uncertainty": "token_uncertainty",
    "uncertainty_analysis": "uncertainty_analysis",
    "token_alternatives": "token_losses",
    "bald_reference": "token_uncertainty",
}
"""Tables of the study -> the stage that makes each."""
PER_REFERENCE = ("evaluations", "evaluation_examples")
"""Tables of the base model and of the teacher."""
PER_ABLATION = {
    "training_log": "student",
    "selections": "student",
    "evaluations": "evaluation",
    "evaluation_examples": "evaluation",
    "evaluation_tokens": "evaluation",
    "curriculum": "curriculum",
    "curriculum_uncertainty": "curriculum",
}
"""Tables of an ablation -> the stage that makes each."""


def report_path(study: str) -> str:
    """Return the folder of the report."""
    return partition_path("ablation_report", study=study)


def ablation_report(config: Config, study: StudySpec) -> StageAsset:
    """Return the asset."""
    return StageAsset(
        stage="ablation_report",
        path=(study.name, "ablation_report"),
        study=study.name,
        follows_inputs=study.enabled,
        fields=study_fields(config, study, "ablation_report"),
        description="Base model, teacher and every student compared, over seeds and against mle, with intervals; "
        "the report as an HTML page.",
        kinds=frozenset({"python", "polars"}),
        outputs={"report": report_path(study.name)},
        inputs=tuple(_inputs(config, study)),
    )


def _inputs(config: Config, study: StudySpec) -> Iterator[Input]:
    name = study.name
    yield inputs.model_without_weights(study.model)
    yield from inputs.examples(study.dataset, *study.ood)
    for table, stage in PER_STUDY.items():
        yield inputs.study_table(name, table, stage)
    if config.has_truth(study):
        yield inputs.study_table(name, "truth_ranking")
    for row in REFERENCE_ROWS:
        for table in PER_REFERENCE:
            yield inputs.row_table(name, table, row, ("reference_evaluation",))
    yield inputs.row_table(name, "training_log", TEACHER_ROW, ("baseline_teacher",))
    if study.teacher_sweep is not None:
        yield inputs.study_table(name, "teacher_candidates", "teacher_sweep")
    ablations = {one: config.ablations[one] for one in study.ablations}
    for ablation in study.ablations:
        if is_measured_on_validation(ablations[ablation], ablations):
            yield inputs.row_table(name, "validation_losses", ablation, (ablation, "evaluation"))
        for table, stage in PER_ABLATION.items():
            yield inputs.row_table(name, table, ablation, (ablation, stage))
        yield Input(f"costs/{ablation}", inputs.costs_path(name, ablation), (name, ablation, "student"))
