"""Datasets whose tokens have a known true distribution, and what in a study needs it."""

from collections.abc import Mapping

from tokenuq_ml.config.ablation import AblationSpec
from tokenuq_ml.config.study import StudySpec

LANGUAGE = "synthetic_language"
"""The format of these datasets."""
TRUTH_FRACTIONS = (0.0, 0.25, 0.5, 1.0)
"""Shares of the teacher's training after which it is compared with the truth."""


def first_oracle(study: StudySpec, ablations: Mapping[str, AblationSpec]) -> str | None:
    """Return the study's first ablation that reads the true distributions of tokens; None if none does."""
    return next((name for name in study.ablations if ablations[name].needs_truth), None)


def without_truth(ablation: str, dataset: str) -> str:
    """Return what is wrong with an ablation that reads the truth, on a dataset without it, and what to do."""
    return (
        f"{ablation!r} reads the true distribution of each token, and the dataset {dataset!r} has none; remove the "
        f"ablation, or train on a dataset of format {LANGUAGE!r}"
    )
