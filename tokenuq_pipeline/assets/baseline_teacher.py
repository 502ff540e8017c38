"""`<study>/baseline_teacher`: LoRA fine-tuned by vanilla MLE; the teacher of the students."""

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.places import partition_place, table_place


def teacher_adapter(study: str) -> str:
    """Where the teacher's adapter lies."""
    return f"{partition_place('baseline_teacher', study=study)}/adapter"


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
            "training_log": table_place("training_log", study=name, ablation="teacher"),
            "plots": partition_place("plots", study=name, ablation="teacher", stage="baseline_teacher"),
        },
        inputs={"model": f"models/{study.model}", "tokenized_dataset": table_place("tokenized_dataset", study=name)},
        deps=(("models", study.model), (name, "tokenized_dataset")),
    )
