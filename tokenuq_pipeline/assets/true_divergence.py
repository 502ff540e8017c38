"""`<study>/true_divergence`: how far the teacher is from the distributions that generated a synthetic language."""

from tokenuq_ml.config import TEACHER_ROW, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.runtime.store_layout import table_path

TEACHER = "baseline_teacher"


def true_divergence(config: Config, study: StudySpec) -> StageAsset:
    """Return the asset, of a study that knows the truth."""
    name = study.name
    return StageAsset(
        stage="true_divergence",
        path=(name, "true_divergence"),
        study=name,
        fields=study_fields(config, study, "true_divergence"),
        description="Divergence of teacher and base model from the true distribution of each response token, at shares "
        "of the teacher's training.",
        kinds=frozenset({"python", "torch", "parquet"}),
        needs_model=True,
        table="true_divergence",
        outputs={
            table: table_path(table, study=name) for table in ("true_divergence", "true_divergence_over_training")
        },
        inputs=(
            inputs.model(study.model),
            inputs.study_table(name, "tokenized_dataset"),
            *inputs.truth(config, study),
            inputs.teacher_adapter(name, "adapter"),
            Input("snapshots", inputs.teacher_snapshots_path(name), (name, TEACHER)),
            Input("training_log", table_path("training_log", study=name, ablation=TEACHER_ROW), (name, TEACHER)),
        ),
    )
