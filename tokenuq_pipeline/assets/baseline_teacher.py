"""`<study>/baseline_teacher`: LoRA fine-tuned by MLE on every response token; the teacher of the students."""

from tokenuq_ml.config import TEACHER_ROW, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.training_checks import training_is_finite_check
from tokenuq_pipeline.runtime.store_layout import partition_path, table_path


def baseline_teacher(config: Config, study: StudySpec) -> StageAsset:
    """Return the asset."""
    name = study.name
    return StageAsset(
        stage="baseline_teacher",
        path=(name, "baseline_teacher"),
        study=name,
        fields=study_fields(config, study, "baseline_teacher"),
        description="The baseline: an adapter trained by MLE on every response token. Students distil from it.",
        kinds=frozenset({"python", "torch"}),
        needs_model=True,
        table="training_log",
        outputs={
            "adapter": inputs.teacher_adapter_path(name),
            "training_log": table_path("training_log", study=name, ablation=TEACHER_ROW),
            "plots": partition_path("plots", study=name, ablation=TEACHER_ROW, stage="baseline_teacher"),
        },
        inputs=(inputs.model(study.model), inputs.study_table(name, "tokenized_dataset")),
        checks=(training_is_finite_check(name, TEACHER_ROW, inputs.teacher_adapter_path(name), "training_log"),),
    )
