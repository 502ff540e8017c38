"""`<study>/baseline_teacher`: LoRA fine-tuned by vanilla MLE; the teacher of the students."""

from tokenuq_ml.config import TEACHER_ROW, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.store_paths import partition_path, table_path


def teacher_adapter(study: str) -> str:
    """Where the teacher's adapter lies."""
    return f"{partition_path('baseline_teacher', study=study)}/adapter"


def baseline_teacher(config: Config, study: StudySpec) -> StageAsset:
    name = study.name
    return StageAsset(
        stage="baseline_teacher",
        path=(name, "baseline_teacher"),
        study=name,
        fields=study_fields(config, study, "baseline_teacher"),
        description="The baseline: an adapter trained by vanilla MLE on every response token. Students distil from it.",
        kinds=frozenset({"python", "torch"}),
        needs_model=True,
        table="training_log",
        outputs={
            "adapter": teacher_adapter(name),
            "training_log": table_path("training_log", study=name, ablation=TEACHER_ROW),
            "plots": partition_path("plots", study=name, ablation=TEACHER_ROW, stage="baseline_teacher"),
        },
        inputs={"model": f"models/{study.model}", "tokenized_dataset": table_path("tokenized_dataset", study=name)},
        deps=(("models", study.model), (name, "tokenized_dataset")),
    )
