"""`<study>/uncertainty_analysis`: is the loss a proxy of epistemic uncertainty?"""

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.store_paths import partition_path, table_path


def uncertainty_analysis(config: Config, study: StudySpec) -> StageAsset:
    name, tables = study.name, ("token_losses", "token_uncertainty")
    return StageAsset(
        stage="uncertainty_analysis",
        path=(name, "uncertainty_analysis"),
        study=name,
        follows_inputs=study.enabled,
        fields=study_fields(config, study, "uncertainty_analysis"),
        description="Correlations of loss, entropy and BALD (Pearson, Spearman, partial given entropy), by category.",
        kinds=frozenset({"python", "polars", "parquet"}),
        table="uncertainty_analysis",
        outputs={
            "uncertainty_analysis": table_path("uncertainty_analysis", study=name),
            "plots": partition_path("plots", study=name, stage="uncertainty_analysis"),
        },
        inputs={table: table_path(table, study=name) for table in tables},
        deps=tuple((name, table) for table in tables),
    )
