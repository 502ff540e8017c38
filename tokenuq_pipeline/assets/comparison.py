"""`comparisons/<name>`: one page over several studies."""

from collections.abc import Iterator
from dataclasses import replace

from tokenuq_ml.config import REFERENCE_ROWS, StudySpec
from tokenuq_ml.config.comparison import ComparisonSpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import comparison_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.ablation_report import report_path
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.inputs import Input
from tokenuq_pipeline.runtime.store_layout import ABLATION_TABLES, COMPARISONS, STUDY_TABLES, comparison_path


def comparison_asset(config: Config, comparison: ComparisonSpec) -> StageAsset:
    """Return the asset of a comparison."""
    studies = [config.studies[name] for name in comparison.studies]
    return StageAsset(
        stage=COMPARISONS,
        path=(COMPARISONS, comparison.name),
        fields=comparison_fields(config, comparison),
        description=f"{comparison.kind} over {len(studies)} studies, as an HTML page, Markdown and tables.",
        kinds=frozenset({"python", "polars"}),
        outputs={"comparison": comparison_path(comparison.name)},
        inputs=tuple(one for study in studies for one in _inputs(config, comparison, study)),
        follows_inputs=all(study.enabled for study in studies),
    )


def _inputs(config: Config, comparison: ComparisonSpec, study: StudySpec) -> Iterator[Input]:
    """Yield what the comparison reads of a study; each name begins with the study's."""
    for item in _of_study(config, comparison, study):
        yield replace(item, name=f"{study.name}/{item.name}")


def _of_study(config: Config, comparison: ComparisonSpec, study: StudySpec) -> Iterator[Input]:
    name = study.name
    if comparison.READS_REPORT:
        yield Input("ablation_report", report_path(name), (name, "ablation_report"))
    tables = comparison.STUDY_TABLES
    if config.has_truth(study):
        tables += comparison.STUDY_TABLES_WITH_TRUTH
    for table in tables:
        yield inputs.study_table(name, table, _maker(table, STUDY_TABLES))
    for row in REFERENCE_ROWS:
        for table in comparison.REFERENCE_TABLES:
            yield inputs.row_table(name, table, row, ("reference_evaluation",))
    optional = comparison.optional_ablations(study, config.ablations)
    for ablation in comparison.ablations_read(study, config.ablations):
        for table in comparison.ABLATION_TABLES:
            item = inputs.row_table(name, table, ablation, (ablation, _maker(table, ABLATION_TABLES)))
            yield replace(item, optional=ablation in optional)


def _maker(table: str, tables: dict[str, tuple[str, ...]]) -> str:
    """Return the stage that makes a table."""
    return next(stage for stage, made in tables.items() if table in made)
