"""`<study>/uncertainty_estimates`: further estimators of BALD."""

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.further_teachers import MEMBER
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.runtime.store_layout import ensemble_adapter_path, table_path

STAGE = "uncertainty_estimates"


def uncertainty_estimates(config: Config, study: StudySpec) -> StageAsset:
    """Return the asset, of a study that names estimators."""
    name = study.name
    return StageAsset(
        stage=STAGE,
        path=(name, STAGE),
        study=name,
        fields=study_fields(config, study, STAGE),
        description="BALD of every response token by further estimators, and what each of them costs.",
        kinds=frozenset({"python", "torch", "parquet"}),
        needs_model=True,
        table=STAGE,
        outputs={table: table_path(table, study=name) for table in (STAGE, "estimator_costs")},
        inputs=(
            inputs.model(study.model),
            inputs.study_table(name, "tokenized_dataset"),
            inputs.teacher_adapter(name, "adapter"),
            *(
                Input(f"adapter/{row}", ensemble_adapter_path(name, row), (name, row, MEMBER))
                for row in study.ensemble_teachers
            ),
        ),
    )
