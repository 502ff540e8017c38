"""How long the trainings of a study are, and the rank of their adapters. Does not import torch."""

import math

from tokenuq_ml.config import AblationSpec, StudySpec, TrainSpec, UncertaintySpec
from tokenuq_ml.config.estimators import ENSEMBLE, LAPLACE_ESTIMATORS


def budget_of(study: StudySpec, stage: str, ablation: AblationSpec | None = None, row: str = "") -> TrainSpec:
    """Return the budget of a training.

    Args:
        study: the study.
        stage: `baseline_teacher`, `candidate_teacher`, `ensemble_teacher` or `student`.
        ablation: of a student.
        row: of a candidate for the teacher.
    """
    if stage == "candidate_teacher":
        return study.teacher_candidates[row].of(study.train)
    if stage == "ensemble_teacher" and study.teacher_candidates:
        # Which candidate it is trained like is known once they are compared: the longest at most.
        return max((one.of(study.train) for one in study.teacher_candidates.values()), key=lambda train: train.epochs)
    return study.train if ablation is None else ablation.train.of(study.train)


def estimator_passes(uncertainty: UncertaintySpec, train_share: float) -> float:
    """Return the forward passes over all tokens of the further estimators of BALD.

    Args:
        uncertainty: of the study.
        train_share: share of the tokens that are in the train split, which a Laplace approximation is fitted to.
    """
    passes = 0.0
    for name in uncertainty.measured:
        if name == ENSEMBLE:
            passes += uncertainty.members
        else:
            passes += 1 + train_share if name in LAPLACE_ESTIMATORS else uncertainty.samples
    return passes


def steps_of(train: TrainSpec, rows: float, ablation: AblationSpec | None = None) -> int:
    """Return the optimiser steps of a training on `rows` examples."""
    steps = math.ceil(rows / train.batch_size) * train.epochs
    return steps if ablation is None else ablation.steps(steps)


def epochs_of(train: TrainSpec, rows: float, ablation: AblationSpec | None = None) -> float:
    """Return how often each of `rows` examples is trained."""
    whole = steps_of(train, rows)
    return train.epochs * steps_of(train, rows, ablation) / whole if whole else train.epochs


def rank_of(study: StudySpec, ablation: AblationSpec) -> int:
    """Return the rank of an ablation's adapter; 0 in a study that trains the model itself."""
    if study.train.adapter == "none":
        return 0
    return ablation.lora.of(ablation.train.of(study.train).lora).rank
