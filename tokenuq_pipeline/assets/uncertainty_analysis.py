"""`<study>/uncertainty_analysis`: whether the loss is a proxy of epistemic uncertainty."""

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.config.token_tables import ranked_tables
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.store_layout import partition_path, table_path


def uncertainty_analysis(config: Config, study: StudySpec) -> StageAsset:
    """Return the asset."""
    name, known = study.name, inputs.truth(config, study)
    ranking = ("truth_ranking",) if known else ()
    over_training = (inputs.study_table(name, "true_divergence_over_training"),) if known else ()
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
            **{table: table_path(table, study=name) for table in ("uncertainty_analysis", *ranking)},
            "plots": partition_path("plots", study=name, stage="uncertainty_analysis"),
        },
        inputs=(
            inputs.study_table(name, "token_losses"),
            inputs.study_table(name, "token_uncertainty"),
            *known,
            *over_training,
            *(inputs.study_table(name, table) for table in ranked_tables(config, study)),
        ),
    )
