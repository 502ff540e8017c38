"""All assets of a configuration, grouped by the child process that makes them."""

from typing import NamedTuple

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.config.resources import Processes, Sharding, StageResources, largest
from tokenuq_ml.config.token_tables import reads_change
from tokenuq_pipeline.assets.ablation import ablation_assets
from tokenuq_pipeline.assets.ablation_report import ablation_report
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.baseline_teacher import baseline_teacher
from tokenuq_pipeline.assets.comparison import comparison_asset
from tokenuq_pipeline.assets.datasets import dataset_assets
from tokenuq_pipeline.assets.export import export_asset
from tokenuq_pipeline.assets.further_teachers import candidate_teacher, ensemble_teacher
from tokenuq_pipeline.assets.models import model_assets
from tokenuq_pipeline.assets.teacher_change import teacher_change
from tokenuq_pipeline.assets.teacher_scores import teacher_score_assets
from tokenuq_pipeline.assets.teacher_sweep import teacher_sweep
from tokenuq_pipeline.assets.tokenized_dataset import tokenized_dataset
from tokenuq_pipeline.assets.tracking import trackers_of_model
from tokenuq_pipeline.assets.true_divergence import true_divergence
from tokenuq_pipeline.assets.uncertainty_analysis import uncertainty_analysis
from tokenuq_pipeline.assets.uncertainty_estimates import uncertainty_estimates


class StageGroup(NamedTuple):
    """The assets that one child process makes, in order."""

    entrypoint: str
    """The module of `tokenuq_ml.stages` that the child runs."""
    op: str
    assets: list[StageAsset]
    resources: StageResources = StageResources()
    """What the study says that the child needs."""
    processes: Processes = 1
    """What the study says, of which `PARALLEL_STAGES` take account."""
    sharding: Sharding = "none"
    report_to: tuple[str, ...] = ()
    """The trackers that the study names."""


def stage_groups(config: Config) -> list[StageGroup]:
    """Return the groups of a configuration, in the order in which data flows."""
    models = model_assets(config)
    groups = [StageGroup("convert_model", "__".join(one.path), [one]) for one in models if not one.inputs]
    for asset in dataset_assets(config):
        program = "curate_dataset" if "curation" in asset.files else "load_dataset"
        groups.append(StageGroup(program, "__".join(asset.path), [asset]))
    # After the language that they are trained on.
    groups += [StageGroup("pretrain_model", "__".join(one.path), [one]) for one in models if one.inputs]
    for study in config.studies.values():
        name = study.name
        groups += [
            StageGroup("tokenize_dataset", f"{name}__tokenized_dataset", [tokenized_dataset(config, study)]),
            *_teacher(config, study),
            StageGroup("score_teacher", f"{name}__measure", teacher_score_assets(config, study)),
            *_against_truth(config, study),
            *_change(config, study),
            *_estimates(config, study),
            StageGroup("correlate", f"{name}__uncertainty_analysis", [uncertainty_analysis(config, study)]),
        ]
        for ablation in study.ablations:
            assets = ablation_assets(config, study, config.ablations[ablation])
            groups.append(StageGroup("train_student", f"{name}__{ablation}__student", assets))
        groups.append(StageGroup("report", f"{name}__ablation_report", [ablation_report(config, study)]))
    for asset in (comparison_asset(config, comparison) for comparison in config.comparisons.values()):
        # Not the name of its job: Dagster wants other names for ops than for jobs.
        groups.append(StageGroup("compare_studies", f"{'__'.join(asset.path)}__page", [asset]))
    for asset in (export_asset(config, spec) for spec in config.exports.values()):
        groups.append(StageGroup("export_model", f"{'__'.join(asset.path)}__model", [asset]))
    return [_placed(config, group) for group in groups]


def _teacher(config: Config, study: StudySpec) -> list[StageGroup]:
    """Return the training of the teacher; or those of the candidates, and the choice among them."""
    name, teacher = study.name, baseline_teacher(config, study)
    if study.teacher_sweep is None:
        return [StageGroup("train_teacher", f"{name}__baseline_teacher", [teacher]), *_ensemble(config, study)]
    rows = study.teacher_candidates
    return [
        *(StageGroup("train_teacher", f"{name}__{row}", [candidate_teacher(config, study, row)]) for row in rows),
        StageGroup("compare_teachers", f"{name}__teacher_sweep", [teacher_sweep(config, study)]),
        StageGroup("choose_teacher", f"{name}__baseline_teacher", [teacher]),
        *_ensemble(config, study),
    ]


def _ensemble(config: Config, study: StudySpec) -> list[StageGroup]:
    """Return the trainings of the further teachers of the adapter ensemble, if the study has one."""
    return [
        StageGroup("train_teacher", f"{study.name}__{row}", [ensemble_teacher(config, study, row)])
        for row in study.ensemble_teachers
    ]


def _estimates(config: Config, study: StudySpec) -> list[StageGroup]:
    """Return the measurement of BALD by further estimators, if the study names some."""
    if not study.uncertainty.measured:
        return []
    asset = uncertainty_estimates(config, study)
    return [StageGroup("estimate_uncertainty", f"{study.name}__uncertainty_estimates", [asset])]


def _against_truth(config: Config, study: StudySpec) -> list[StageGroup]:
    """Return the measurement of the teacher's divergence from the truth, if the study knows it."""
    if not config.has_truth(study):
        return []
    return [StageGroup("measure_truth", f"{study.name}__true_divergence", [true_divergence(config, study)])]


def _change(config: Config, study: StudySpec) -> list[StageGroup]:
    """Return the measurement of the teacher's divergence from the base model, if an ablation reads it."""
    if not reads_change(config, study):
        return []
    return [StageGroup("measure_change", f"{study.name}__teacher_change", [teacher_change(config, study)])]


def _placed(config: Config, group: StageGroup) -> StageGroup:
    """Return the group with what its study says of where the child runs."""
    study = config.studies.get(group.assets[0].study or "")
    if study is None:
        is_trained = group.entrypoint == "pretrain_model"
        return group._replace(report_to=trackers_of_model(config, group.assets[0].path[-1])) if is_trained else group
    return group._replace(
        resources=_resources(study, group),
        processes=study.processes,
        sharding=study.sharding,
        report_to=study.report_to,
    )


def _resources(study: StudySpec, group: StageGroup) -> StageResources:
    """Return what one child process needs: it makes its assets one after the other."""
    return largest(need for stage, need in study.resources.items() if stage in {one.stage for one in group.assets})


def assets_by_name(config: Config) -> dict[str, StageAsset]:
    """Return every asset of a configuration by its name, in the order in which data flows."""
    return {asset.name: asset for group in stage_groups(config) for asset in group.assets}
