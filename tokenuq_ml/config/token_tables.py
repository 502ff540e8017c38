"""The token tables that only some studies have."""

from tokenuq_ml.config.load import Config
from tokenuq_ml.config.study import StudySpec


def reads_change(config: Config, study: StudySpec) -> bool:
    """Return whether an ablation of the study reads the teacher's divergence from the base model."""
    return any("teacher_change" in config.ablations[name].tables_read for name in study.ablations)


def ranked_tables(config: Config, study: StudySpec) -> tuple[str, ...]:
    """Return those whose scores are compared with the truth, which the study has to know."""
    if not config.has_truth(study):
        return ()
    estimates = ("uncertainty_estimates",) if study.uncertainty.measured else ()
    return (*estimates, *(("teacher_change",) if reads_change(config, study) else ()))
