"""All assets of a configuration, grouped by the child process that makes them."""

from tokenuq_ml.config.load import Config
from tokenuq_pipeline.assets.ablation import ablation_assets
from tokenuq_pipeline.assets.ablation_report import ablation_report
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.baseline_teacher import baseline_teacher
from tokenuq_pipeline.assets.datasets import dataset_assets
from tokenuq_pipeline.assets.models import model_assets
from tokenuq_pipeline.assets.teacher_scores import teacher_score_assets
from tokenuq_pipeline.assets.tokenized_dataset import tokenized_dataset
from tokenuq_pipeline.assets.uncertainty_analysis import uncertainty_analysis


def stage_groups(config: Config) -> list[tuple[str, str, list[StageAsset]]]:
    """(entry point, op name, assets) of every child process that there can be."""
    groups = [("convert_model", "__".join(asset.path), [asset]) for asset in model_assets(config)]
    groups += [("load_dataset", "__".join(asset.path), [asset]) for asset in dataset_assets(config)]
    for study in config.studies.values():
        name = study.name
        groups += [
            ("tokenize_dataset", f"{name}__tokenized_dataset", [tokenized_dataset(config, study)]),
            ("train_teacher", f"{name}__baseline_teacher", [baseline_teacher(config, study)]),
            ("score_teacher", f"{name}__measure", teacher_score_assets(config, study)),
            ("correlate", f"{name}__uncertainty_analysis", [uncertainty_analysis(config, study)]),
        ]
        groups += [
            ("train_student", f"{name}__{arm}__student", ablation_assets(config, study, config.ablations[arm]))
            for arm in study.ablations
        ]
        groups.append(("report", f"{name}__ablation_report", [ablation_report(config, study)]))
    return groups
