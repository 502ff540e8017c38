"""`<study>/tokenized_dataset`: the study's data in its model's tokens, with the response mask."""

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import study_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.store_layout import table_path

TABLES = ("tokenized_dataset", "rejected_examples")


def tokenized_dataset(config: Config, study: StudySpec) -> StageAsset:
    """Return the asset."""
    datasets = (study.dataset, *study.ood)
    return StageAsset(
        stage="tokenized_dataset",
        path=(study.name, "tokenized_dataset"),
        study=study.name,
        fields=study_fields(config, study, "tokenized_dataset"),
        description=f"{', '.join(datasets)} in the tokens of {study.model}, with a mask of the response tokens.",
        kinds=frozenset({"python", "polars", "parquet"}),
        table="tokenized_dataset",
        outputs={table: table_path(table, study=study.name) for table in (*TABLES, *_truth(config, study))},
        inputs=(inputs.model_without_weights(study.model), *inputs.examples(*datasets)),
    )


def _truth(config: Config, study: StudySpec) -> tuple[str, ...]:
    """Return the table of the true distributions, if some of the study's data have them."""
    return ("token_truth",) if config.has_truth(study) else ()
