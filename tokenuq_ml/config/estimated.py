"""What in a study needs an estimator of BALD that the study has to name."""

from collections.abc import Mapping

from tokenuq_ml.config.ablation import AblationSpec
from tokenuq_ml.config.estimators import ESTIMATORS, column_of
from tokenuq_ml.config.study import StudySpec


def unmeasured_estimator(study: StudySpec, ablations: Mapping[str, AblationSpec]) -> str | None:
    """Return what is wrong with an ablation that reads an estimator which its study does not measure; None if none."""
    measured = {column_of(estimator) for estimator in study.uncertainty.measured}
    every = {column_of(estimator): estimator for estimator in ESTIMATORS}
    for name in study.ablations:
        for column in ablations[name].columns_read:
            if column in every and column not in measured:
                return (
                    f"{name!r} reads {column!r}, which the study does not measure; add {every[column]!r} to its "
                    "uncertainty.estimators, or remove the ablation"
                )
    return None
