"""The code version of each stage: its revision, and the fields of the configuration that it reads.

The fields decide the version, so that a stage must not read anything else of the configuration.
"""

from tokenuq_ml.config import AblationSpec, StudySpec, spec_hash
from tokenuq_ml.config.comparison import ComparisonSpec
from tokenuq_ml.config.export import ExportSpec
from tokenuq_ml.config.families import is_measured_on_validation
from tokenuq_ml.config.load import Config
from tokenuq_ml.config.pairwise import compared_with
from tokenuq_ml.config.token_tables import ranked_tables
from tokenuq_ml.config.truth import TRUTH_FRACTIONS
from tokenuq_ml.config.user_code import source_hash

# Raise a stage's revision when a code change alters what it computes.
REVISIONS = {
    "models": 2,
    "datasets": 2,
    "tokenized_dataset": 2,
    "candidate_teacher": 1,
    "teacher_sweep": 1,
    "baseline_teacher": 3,
    "ensemble_teacher": 1,
    "token_losses": 6,
    "teacher_hidden": 5,
    "token_uncertainty": 8,
    "reference_evaluation": 8,
    "true_divergence": 1,
    "teacher_change": 1,
    "uncertainty_estimates": 1,
    "uncertainty_analysis": 2,
    "student": 3,
    "curriculum": 5,
    "evaluation": 8,
    "ablation_report": 5,
    "comparisons": 1,
    "export": 1,
}

_TOKENIZATION = ("truncation", "max_truncated_share", "template_drops", "special_tokens_in_text")
"""Keys of a study that its tokens depend on; left out of the fields while they have their default."""

_PROMPTS = ("template_drops", "special_tokens_in_text")
"""Those of them on which prompts of evaluations depend."""

_WITHOUT_RESULT = ("enabled", "max_truncated_share", "resources", "processes", "sharding", "report_to")
"""Keys that decide whether and where a study runs, and affect no result."""


def model_fields(config: Config, model: str) -> dict:
    """Return the fields of `models/<model>`."""
    return config.models[model].fields()


def dataset_fields(config: Config, dataset: str) -> dict:
    """Return the fields of `datasets/<dataset>`."""
    return config.datasets[dataset].fields()


def study_fields(config: Config, study: StudySpec, stage: str) -> dict:
    """Return the fields of `<study>/<stage>`: everything that the stage reads of the specs."""
    base = study.base_fields()
    training = {**base, "precision": study.precision.training}
    tables = {**base, "precision": study.precision.tables}
    if stage == "tokenized_dataset":
        given = study.fields()
        return {
            "model": study.model,
            "dataset": study.dataset,
            "ood": list(study.ood),
            "max_length": study.max_length,
            **{key: given[key] for key in _TOKENIZATION if key in given},
            **_only_ood(config, study),
        }
    if stage == "teacher_sweep":
        return {"candidates": _candidates(study), "evaluation": study.evaluation.interval_fields()}
    if stage == "baseline_teacher" and study.teacher_sweep is not None:
        return {"candidates": _candidates(study), **_teacher_fractions(config, study)}
    if stage == "baseline_teacher":
        own = {**training, "train": study.train.fields(), "seed": study.teacher_seed, **_sampling(study)}
        return own | _teacher_fractions(config, study)
    if stage == "token_losses":
        return tables
    if stage == "teacher_hidden":
        # Students read it during training, so that a change of the tables' precision must not retrain them.
        return {**training, "teacher_cache_gigabytes": study.teacher_cache_gigabytes}
    if stage == "token_uncertainty":
        # Computed in float32, whatever the study's precision is.
        return {**base, "uncertainty": study.uncertainty.dropout_fields()}
    if stage == "uncertainty_estimates":
        # This too.
        return {**base, "uncertainty": study.uncertainty.estimator_fields()}
    if stage == "true_divergence":
        # Computed in float32 too.
        own = {**base, "uncertainty": study.uncertainty.dropout_fields()}
        return own | _teacher_fractions(config, study)
    if stage == "teacher_change":
        # And this.
        return base
    if stage == "reference_evaluation":
        return {**tables, "evaluation": study.evaluation.fields(), **_prompt_fields(study)}
    if stage == "uncertainty_analysis":
        ranked = ranked_tables(config, study)
        return {"evaluation": study.evaluation.interval_fields(), **({"ranked": list(ranked)} if ranked else {})}
    if stage == "ablation_report":
        return {
            "study": _with_result(study),
            "ablations": {name: config.ablations[name].fields() for name in study.ablations},
        }
    raise KeyError(stage)


def candidate_fields(config: Config, study: StudySpec, row: str) -> dict:
    """Return the fields of `<study>/<row>/candidate_teacher`."""
    return {
        **study.base_fields(),
        "precision": study.precision.training,
        "train": study.teacher_candidates[row].of(study.train).fields(),
        "seed": study.teacher_seed,
        "tables": study.precision.tables,
        **_sampling(study),
        **_teacher_fractions(config, study),
    }


def ensemble_fields(config: Config, study: StudySpec, row: str) -> dict:
    """Return the fields of `<study>/<row>/ensemble_teacher`: those of the study's teacher, with another seed.

    If the study's teacher is one of several candidates, its setting is known once they are compared.
    """
    own = {**study.base_fields(), "precision": study.precision.training, "seed": study.ensemble_teachers[row]}
    if study.teacher_sweep is None:
        return {**own, "train": study.train.fields()}
    settings = study.teacher_candidates.items()
    return {**own, "candidates": {name: setting.of(study.train).fields() for name, setting in settings}}


def _sampling(study: StudySpec) -> dict:
    """Return whether BALD drops attention, which decides if a teacher without an adapter can be sampled at all.

    Nothing for teachers with an adapter, whose features are dropped.
    """
    return {"drops_attention": study.uncertainty.attention_dropout > 0} if study.train.adapter == "none" else {}


def _teacher_fractions(config: Config, study: StudySpec) -> dict:
    """Return when snapshots of the teacher are taken; nothing for a study that compares none with a truth."""
    return {"fractions": list(TRUTH_FRACTIONS)} if config.has_truth(study) else {}


def _candidates(study: StudySpec) -> dict:
    return {row: setting.fields() for row, setting in study.teacher_candidates.items()}


def ablation_fields(config: Config, study: StudySpec, ablation: AblationSpec, stage: str) -> dict:
    """Return the fields of `<study>/<ablation>/<stage>`."""
    identity = {"family": ablation.family, "seed": ablation.seed}
    if stage == "student":
        return {
            **study.base_fields(),
            "precision": study.precision.training,
            "train": ablation.train.of(study.train).fields(),
            "ablation": ablation.fields(),
            # The source of a user's own functions: they are part of the objective.
            "functions": {name: source_hash(name) for name in ablation.functions},
            "teacher_states": study.teacher_states,
            "fractions": list(study.curriculum.fractions),
        }
    if stage == "curriculum":
        return {
            **study.base_fields(),
            "curriculum": study.curriculum.fields(),
            "uncertainty": study.uncertainty.dropout_fields(),
        }
    if stage == "evaluation":
        precision = {**study.base_fields(), "precision": study.precision.tables}
        ablations = {name: config.ablations[name] for name in study.ablations}
        validation = {"validation": True} if is_measured_on_validation(ablation, ablations) else {}
        own = {**precision, **identity, **validation, **_versus(study, ablation, ablations)}
        return {**own, "evaluation": study.evaluation.fields(), **_prompt_fields(study)}
    raise KeyError(stage)


def comparison_fields(config: Config, comparison: ComparisonSpec) -> dict:
    """Return the fields of `comparisons/<name>`: its own, and the studies and ablations that it reads."""
    studies = {name: config.studies[name] for name in comparison.studies}
    return {
        "comparison": comparison.fields(),
        "studies": {name: _with_result(study) for name, study in studies.items()},
        "ablations": {
            name: {one: config.ablations[one].fields() for one in comparison.ablations_read(study, config.ablations)}
            for name, study in studies.items()
        },
        **({"knobs": _knobs(config, comparison)} if comparison.NEEDS_KNOBS else {}),
    }


def _knobs(config: Config, comparison: ComparisonSpec) -> dict[str, dict[str, float]]:
    """Return study -> the knobs that its dataset changes in its language."""
    changes = {name: config.datasets[config.studies[name].dataset].changes for name in comparison.studies}
    return {name: found.fields() for name, found in changes.items() if found is not None}


def export_fields(config: Config, spec: ExportSpec) -> dict:
    """Return the fields of `export/<name>`: what is written, and what its model card says of the making.

    `study` is an entry that makes this model alone.
    """
    study = config.studies[spec.study]
    own = {key: value for key, value in _with_result(study).items() if key not in ("seeds", "sweep", "grid")}
    trained_on = config.with_sources(study.dataset)
    return {
        **study.base_fields(),
        "export": spec.fields(),
        "study": {**own, "ablations": [] if spec.is_of_teacher else [spec.ablation]},
        "ablation": None if spec.is_of_teacher else config.ablations[spec.ablation].fields(),
        "models": {name: model_fields(config, name) for name in config.models_of(study)},
        "datasets": {name: dataset_fields(config, name) for name in config.datasets_of(study)},
        "licenses": {
            "model": config.models[study.model].license,
            "datasets": {name: config.datasets[name].license for name in trained_on},
        },
    }


def _with_result(study: StudySpec) -> dict:
    """Return the fields of a study on which a result depends."""
    return {name: value for name, value in study.fields().items() if name not in _WITHOUT_RESULT}


def _only_ood(config: Config, study: StudySpec) -> dict:
    """Return the datasets of `ood` of which only the rows of their split `ood` are taken: those that also have others.

    Left out if there is none.
    """
    splits = {name: config.datasets[name].splits or () for name in study.ood}
    names = [name for name, found in splits.items() if "ood" in found and len(found) > 1]
    return {"only_ood": names} if names else {}


def _versus(study: StudySpec, ablation: AblationSpec, ablations: dict[str, AblationSpec]) -> dict:
    """Return the model with which an ablation's outputs are compared; nothing in a study without such a comparison."""
    pairwise = study.evaluation.pairwise
    return {} if pairwise is None else {"versus": compared_with(pairwise.versus, ablations)[ablation.name]}


def _prompt_fields(study: StudySpec) -> dict:
    """Return the keys about chat templates if the study generates answers, without those that have their default."""
    given = study.fields() if study.evaluation.answered else {}
    return {key: given[key] for key in _PROMPTS if key in given}


def code_version(stage: str, fields: dict) -> str:
    """Return `<revision>-<hash of the fields>`, which Dagster compares to find stale assets."""
    return f"{REVISIONS[stage]}-{spec_hash(fields)}"
