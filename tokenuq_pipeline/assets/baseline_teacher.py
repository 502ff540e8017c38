"""`<study>/baseline_teacher`: LoRA fine-tuned by MLE on every response token; the teacher of the students.

It is trained, or taken from the candidates of `teacher_sweep`.
"""

from tokenuq_ml.config import TEACHER_ROW, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.teacher_sweep import candidate_inputs
from tokenuq_pipeline.assets.training_checks import training_is_finite_check
from tokenuq_pipeline.runtime.store_layout import partition_path, table_path


def baseline_teacher(config: Config, study: StudySpec) -> StageAsset:
    """Return the asset."""
    name, is_trained = study.name, study.teacher_sweep is None
    taken = "the candidate teacher with the lowest validation loss" if not is_trained else "an adapter"
    return StageAsset(
        stage="baseline_teacher",
        path=(name, "baseline_teacher"),
        study=name,
        fields=study_fields(config, study, "baseline_teacher"),
        description=f"The baseline: {taken} trained by MLE on every response token. Students distil from it.",
        kinds=frozenset({"python", "torch" if is_trained else "polars"}),
        needs_model=is_trained,
        table="training_log",
        outputs={
            "adapter": inputs.teacher_adapter_path(name),
            **({"snapshots": inputs.teacher_snapshots_path(name)} if config.has_truth(study) else {}),
            "training_log": table_path("training_log", study=name, ablation=TEACHER_ROW),
            "plots": partition_path("plots", study=name, ablation=TEACHER_ROW, stage="baseline_teacher"),
        },
        inputs=(inputs.model(study.model), inputs.study_table(name, "tokenized_dataset"))
        if is_trained
        else candidate_inputs(config, study),
        checks=(training_is_finite_check(name, TEACHER_ROW, inputs.teacher_adapter_path(name), "training_log"),),
    )
