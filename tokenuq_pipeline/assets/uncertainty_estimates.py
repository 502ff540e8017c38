"""`<study>/uncertainty_estimates` and `<study>/<row>/ensemble_teacher`: further estimators of BALD."""

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import ensemble_fields, study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.assets.training_checks import training_is_finite_check
from tokenuq_pipeline.runtime.store_layout import ensemble_adapter_path, partition_path, table_path

STAGE, MEMBER = "uncertainty_estimates", "ensemble_teacher"


def ensemble_teacher(config: Config, study: StudySpec, row: str) -> StageAsset:
    """Return the asset of one further teacher; `row` is a key of `StudySpec.ensemble_teachers`."""
    name, seed = study.name, study.ensemble_teachers[row]
    adapter = ensemble_adapter_path(name, row)
    setting = (inputs.study_table(name, "teacher_candidates", "teacher_sweep"),) if study.teacher_sweep else ()
    return StageAsset(
        stage=MEMBER,
        path=(name, row, MEMBER),
        study=name,
        ablation=row,
        fields=ensemble_fields(config, study, row),
        description=f"The study's teacher trained with seed {seed}: other initial weights, other order of the data.",
        kinds=frozenset({"python", "torch"}),
        needs_model=True,
        table="training_log",
        outputs={
            "adapter": adapter,
            "training_log": table_path("training_log", study=name, ablation=row),
            "plots": partition_path("plots", study=name, ablation=row, stage=MEMBER),
        },
        inputs=(inputs.model(study.model), inputs.study_table(name, "tokenized_dataset"), *setting),
        checks=(training_is_finite_check(name, row, adapter, "training_log", asset=f"{name}/{row}/{MEMBER}"),),
    )


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
