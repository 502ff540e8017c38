"""Scores by which response tokens are selected: a function per name in `registry.SELECTORS`.

`selection.py` has the rule that selects by a score.

Notation: l is the student's cross-entropy with the label; N response tokens of an optimiser batch.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tokenuq_ml import seeding
from tokenuq_ml.config.estimators import ESTIMATORS, column_of
from tokenuq_ml.data.token_categories import CATEGORIES
from tokenuq_ml.errors import InputError
from tokenuq_ml.training.tokens import Tokens
from tokenuq_ml.transfers import to_device


def loss(tokens: Tokens) -> Tensor:
    """Score by `l` (Liu, Benjamin, Zador 2025, arXiv 2503.16511)."""
    return tokens.loss_N


def excess_loss(tokens: Tokens) -> Tensor:
    """Score by `l - l_ref` (Rho-1, Lin et al. 2024, arXiv 2404.07965); the reference is the baseline teacher."""
    return tokens.loss_N - tokens.column("teacher_loss").to(tokens.loss_N)


def teacher_loss(tokens: Tokens) -> Tensor:
    """Score by the baseline teacher's cross-entropy."""
    return tokens.column("teacher_loss")


def entropy(tokens: Tokens) -> Tensor:
    """Score by the entropy of the teacher's distribution: aleatoric and epistemic uncertainty together."""
    return tokens.column("entropy")


def bald(tokens: Tokens) -> Tensor:
    """Score by BALD (Houlsby et al. 2011, arXiv 1112.5745) under the teacher's dropout: epistemic uncertainty."""
    return tokens.column("bald")


def _bald_by(estimator: str) -> Callable[[Tokens], Tensor]:
    """Return the score by BALD of another estimator, a column of `uncertainty_estimates`."""
    column = column_of(estimator)

    def score(tokens: Tokens) -> Tensor:
        return tokens.column(column)

    return score


def aleatoric(tokens: Tokens) -> Tensor:
    """Score by the expected entropy under the teacher's dropout: uncertainty that training cannot reduce."""
    return tokens.column("expected_entropy")


def base_loss(tokens: Tokens) -> Tensor:
    """Score by the base model's cross-entropy."""
    return tokens.column("base_loss")


def base_perplexity(tokens: Tokens) -> Tensor:
    """Score by `exp(l)` under the base model (selective token masking, Wu et al. 2025, arXiv 2501.14315)."""
    return tokens.column("base_loss").exp()


def change(tokens: Tokens) -> Tensor:
    """Score by `KL(teacher || base model)`: how far training has moved the distribution, whatever the label is.

    Our own. A label that is one of several, or wrong, has a high loss before and after; here it counts only if the data
    have taught the teacher something about its place. Right if, in known truth, the base model's divergence from the
    truth is large where this is. Wrong where the teacher has moved without need.
    """
    return tokens.column("teacher_change")


def influence(tokens: Tokens) -> Tensor:
    """Score by `l_base - l_ref`: how much training on the data has lowered the token's loss.

    The score of Token Cleaning with a fixed reference (Pang et al. 2025, arXiv 2502.01968), which compares all tokens
    of the data set (scope `dataset`). The paper's reference is trained on other data; here it is the baseline teacher.
    """
    return tokens.column("base_loss") - tokens.column("teacher_loss")


def retrospective_loss(tokens: Tokens) -> Tensor:
    """Score by `l_base - l`, the retrospective excess loss of ssToken (Qin et al. 2025, arXiv 2510.18250).

    The paper's score also has half of an attention weight, which is left out. At the first step all scores are 0.
    """
    return tokens.column("base_loss").to(tokens.loss_N) - tokens.loss_N


def probability(tokens: Tokens) -> Tensor:
    """Score by `p = exp(-l)`; ProFit keeps what is above a threshold (Liu et al. 2026, arXiv 2601.09195)."""
    return torch.exp(-tokens.loss_N)


def student_entropy(tokens: Tokens) -> Tensor:
    """Score by the entropy of the student's distribution at this step (TIP, Xu et al. 2026, arXiv 2604.14084)."""
    return tokens.column("student_entropy")


def divergence(tokens: Tokens) -> Tensor:
    """Score by the student's divergence to the teacher at this step (TIP, Xu et al. 2026, arXiv 2604.14084).

    The paper scores the student's own answers; here the tokens are the data set's, so that nothing is generated.
    """
    return tokens.column("student_divergence")


def entropy_or_divergence(tokens: Tokens) -> Tensor:
    """Score by `h + d - h d`, with entropy and divergence each scaled to [0, 1] over the optimiser batch.

    High where the student is uncertain, or where it is sure and the teacher disagrees: the two regions of TIP (Xu et
    al. 2026, arXiv 2604.14084), joined as probabilities. The tokens are the data set's, not the student's own answers.
    """
    h_N, d_N = (_unit_range(tokens.column(name)) for name in ("student_entropy", "student_divergence"))
    return h_N + d_N - h_N * d_N


def _unit_range(value_N: Tensor) -> Tensor:
    if not len(value_N):
        return value_N
    low, high = value_N.aminmax()
    return (value_N - low) / (high - low).clamp(min=torch.finfo(value_N.dtype).tiny)


COMPLEXITY = {"special": 0, "whitespace": 0, "punctuation": 0, "word": 1, "subword": 1, "number": 2, "code": 2}


def complexity(tokens: Tokens) -> Tensor:
    """Score 0 for structure, 1 for words, 2 for numbers and code: the order of an explicit curriculum."""
    of_category = torch.tensor([float(COMPLEXITY[name]) for name in CATEGORIES])
    category_N = tokens.column("category").long()
    return to_device(of_category, category_N.device)[category_N]


def random(tokens: Tokens) -> Tensor:
    """Score by uniform draws in [0, 1), new at each step, that depend only on seed and step."""
    draws = seeding.step_generator(tokens.seed, tokens.step).random(len(tokens.loss_N))
    return to_device(torch.from_numpy(draws), tokens.loss_N.device)


def fixed_random(tokens: Tokens) -> Tensor:
    """Score by uniform draws in [0, 1) that depend only on seed, example and position: the same in every epoch."""
    if len(tokens.loss_N) and not tokens.example_ids:
        raise InputError(
            "'fixed_random' needs the examples' ids, which this Trainer does not provide; "
            "override `example_ids` of TokenObjective, or select by 'random'"
        )
    counts = torch.bincount(tokens.example_N.cpu(), minlength=len(tokens.example_ids)).tolist()
    draws = [
        seeding.example_generator(tokens.seed, name).random(count)
        for name, count in zip(tokens.example_ids, counts, strict=True)
    ]
    return to_device(torch.from_numpy(np.concatenate(draws) if draws else np.empty(0)), tokens.loss_N.device)


def oracle_kl(tokens: Tokens) -> Tensor:
    """Score by `KL(truth || teacher)`: what the teacher has still to learn of the token, where the truth is known."""
    return tokens.column("true_kl")


def oracle_kl_student(tokens: Tokens) -> Tensor:
    """Score by `KL(truth || student)` at this step."""
    return tokens.column("student_true_kl")


def oracle_entropy(tokens: Tokens) -> Tensor:
    """Score by the entropy of the true distribution: uncertainty that no training can reduce."""
    return tokens.column("true_entropy")


def everything(tokens: Tokens) -> Tensor:
    """Score all tokens alike."""
    return torch.ones_like(tokens.loss_N)


SELECTORS: dict[str, Callable[[Tokens], Tensor]] = {
    "all": everything,
    "loss": loss,
    "excess_loss": excess_loss,
    "teacher_loss": teacher_loss,
    "entropy": entropy,
    "bald": bald,
    **{column_of(estimator): _bald_by(estimator) for estimator in ESTIMATORS},
    "aleatoric": aleatoric,
    "base_loss": base_loss,
    "base_perplexity": base_perplexity,
    "change": change,
    "influence": influence,
    "retrospective_loss": retrospective_loss,
    "probability": probability,
    "student_entropy": student_entropy,
    "divergence": divergence,
    "entropy_or_divergence": entropy_or_divergence,
    "complexity": complexity,
    "random": random,
    "fixed_random": fixed_random,
    "oracle_kl": oracle_kl,
    "oracle_kl_student": oracle_kl_student,
    "oracle_entropy": oracle_entropy,
}
