"""One job per study: its assets, the models and datasets that they need, and their checks. One per comparison."""

import dagster as dg

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.integrity_checks import intact_key
from tokenuq_pipeline.runtime.console import CONSOLE_CONFIG
from tokenuq_pipeline.runtime.data_files import file_key, watched
from tokenuq_pipeline.runtime.store_layout import COMPARISONS


def root_asset_keys(config: Config, study: StudySpec) -> list[dg.AssetKey]:
    """Return the models, datasets and files that a study needs: its assets outside `<study>/...`."""
    datasets = config.datasets_of(study)
    return [
        *(dg.AssetKey(["models", name]) for name in config.models_of(study)),
        *(dg.AssetKey(["datasets", name]) for name in datasets),
        *dict.fromkeys(file_key(config.datasets[name]) for name in datasets if name in watched(config)),
    ]


def comparison_job(comparison: str) -> str:
    """Return the name of a comparison's job, which no study can have."""
    return f"{COMPARISONS}__{comparison}"


def build_jobs(config: Config) -> list:
    """Return one job per study, with the study's name; then one per comparison, which makes its page only."""
    makeable = [asset.key for asset in assets_by_name(config).values()]
    studies = [
        dg.define_asset_job(
            study.name,
            selection=(
                dg.AssetSelection.key_prefixes([study.name]) | dg.AssetSelection.assets(*root_asset_keys(config, study))
            )
            # What a run has just written need not be read again.
            - dg.AssetSelection.checks(*map(intact_key, makeable)),
            description=f"All of the study {study.name}: {study.model} on {study.dataset}, "
            f"ablations {', '.join(study.ablations)}.",
            tags={"study": study.name},
            config=CONSOLE_CONFIG,
        )
        for study in config.studies.values()
    ]
    return studies + [
        dg.define_asset_job(
            comparison_job(name),
            selection=dg.AssetSelection.assets(dg.AssetKey([COMPARISONS, name])).without_checks(),
            description=f"The page that compares {', '.join(comparison.studies)}; their own jobs make what it reads.",
            tags={"comparison": name},
            config=CONSOLE_CONFIG,
        )
        for name, comparison in config.comparisons.items()
    ]
