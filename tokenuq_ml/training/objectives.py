"""The objectives of selected tokens and of the rest, as weights for the training loss.

The paper's objective of an optimiser batch with N response tokens is
`(1/N) * sum_n selected_n ? CE_n : weight * KL(teacher_n || student_n)` (Liu, Benjamin, Zador 2025, arXiv 2503.16511).
An ablation may put any objectives in place of the two. `TokenObjective` divides the sum once, by the N of the complete
optimiser batch, so accumulation and padding change nothing.

Each objective is a function that returns the weights of a token's cross-entropy and of its divergence to the teacher.
"""

import torch
from torch import Tensor

from tokenuq_ml.config import AblationSpec, ObjectiveSpec, user_code
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels import formulas
from tokenuq_ml.kernels.weight_rule import Gain, Weights
from tokenuq_ml.training.tokens import Tokens


def mle(objective: ObjectiveSpec) -> tuple[float, float]:
    """Train by cross-entropy with the label. `dft` and `eaft` do too, with further factors in `GAINS`."""
    return 1.0, 0.0


def distill(objective: ObjectiveSpec) -> tuple[float, float]:
    """Train by `weight` times the divergence to the teacher."""
    return 0.0, objective.distill.weight


def none(objective: ObjectiveSpec) -> tuple[float, float]:
    """Do not train the token."""
    return 0.0, 0.0


OBJECTIVES = {"mle": mle, "dft": mle, "eaft": mle, "distill": distill, "none": none}

GAINS = {"dft": formulas.probability_gain, "eaft": formulas.top_entropy_gain}
"""Factors of the cross-entropy that are computed from the student's own logits; they have no gradient."""


def token_weights(ablation: AblationSpec, selected_N: Tensor, tokens: Tokens | None = None) -> Weights:
    """Return float32 weights of each token, given which are selected.

    Args:
        ablation: the objectives of selected tokens and of the rest.
        selected_N: mask of the selected tokens.
        tokens: the argument of a user's own function (`module:function`), if the ablation names one. It returns `[N]`,
            the weight of each token's cross-entropy, or `Weights` of cross-entropy and divergence.

    Raises:
        InputError: a user's function returned something else.
    """
    columns = [torch.zeros(len(selected_N), dtype=torch.float32, device=selected_N.device) for _ in range(2)]
    for objective, mask_N in ((ablation.selected, selected_N), (ablation.rest, ~selected_N)):
        for column_N, weight in zip(columns, _weights(objective, selected_N, tokens), strict=True):
            column_N[mask_N] = weight[mask_N] if isinstance(weight, Tensor) else float(weight)
    return Weights(*columns)


def _weights(objective: ObjectiveSpec, selected_N: Tensor, tokens: Tokens | None) -> tuple:
    if not user_code.is_reference(objective.kind):
        return OBJECTIVES[objective.kind](objective)
    given = user_code.load(objective.kind)(tokens)
    weights = given if isinstance(given, Weights) else Weights(torch.as_tensor(given), torch.zeros(len(selected_N)))
    for weight_N in weights:
        if weight_N.shape != selected_N.shape or not torch.isfinite(weight_N).all() or (weight_N < 0).any():
            raise InputError(
                f"{objective.kind} must return a finite weight of at least 0 for each of the {len(selected_N)} tokens, "
                "or Weights of two such tensors"
            )
    return tuple(weight_N.detach().float().to(selected_N.device) for weight_N in weights)


def token_gain(ablation: AblationSpec) -> Gain | None:
    """Return the factor of each token's cross-entropy, 1 for objectives without one; None if neither has one."""
    if not ablation.scales_loss:
        return None
    chosen, rest = (GAINS.get(objective.kind) for objective in (ablation.selected, ablation.rest))

    def gain(logits_RV: Tensor, loss_R: Tensor, selected_R: Tensor) -> Tensor:
        one_R = torch.ones_like(loss_R)
        both = (of(logits_RV, loss_R) if of else one_R for of in (chosen, rest))
        return torch.where(selected_R, *both)

    return gain
