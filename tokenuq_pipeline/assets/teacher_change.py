"""`<study>/teacher_change`: how far training has moved the teacher from the base model, per response token."""

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.store_layout import table_path

STAGE = "teacher_change"


def teacher_change(config: Config, study: StudySpec) -> StageAsset:
    """Return the asset, of a study with an ablation that reads it."""
    name = study.name
    return StageAsset(
        stage=STAGE,
        path=(name, STAGE),
        study=name,
        fields=study_fields(config, study, STAGE),
        description="Divergence of the teacher from the base model at each response token: what training has changed.",
        kinds=frozenset({"python", "torch", "parquet"}),
        needs_model=True,
        table=STAGE,
        outputs={STAGE: table_path(STAGE, study=name)},
        inputs=(
            inputs.model(study.model),
            inputs.study_table(name, "tokenized_dataset"),
            inputs.teacher_adapter(name, "adapter"),
        ),
    )
