"""How long the trainings of a study are, and the rank of their adapters. Does not import torch."""

import math

from tokenuq_ml.config import AblationSpec, StudySpec, TrainSpec


def budget_of(study: StudySpec, stage: str, ablation: AblationSpec | None = None, row: str = "") -> TrainSpec:
    """Return the budget of a training.

    Args:
        study: the study.
        stage: `baseline_teacher`, `candidate_teacher` or `student`.
        ablation: of a student.
        row: of a candidate for the teacher.
    """
    if stage == "candidate_teacher":
        return study.teacher_candidates[row].of(study.train)
    return study.train if ablation is None else ablation.train.of(study.train)


def steps_of(train: TrainSpec, rows: float, ablation: AblationSpec | None = None) -> int:
    """Return the optimiser steps of a training on `rows` examples."""
    steps = math.ceil(rows / train.batch_size) * train.epochs
    return steps if ablation is None else ablation.steps(steps)


def epochs_of(train: TrainSpec, rows: float, ablation: AblationSpec | None = None) -> float:
    """Return how often each of `rows` examples is trained."""
    whole = steps_of(train, rows)
    return train.epochs * steps_of(train, rows, ablation) / whole if whole else train.epochs


def rank_of(study: StudySpec, ablation: AblationSpec) -> int:
    """Return the rank of an ablation's adapter."""
    return ablation.lora.of(ablation.train.of(study.train).lora).rank
