"""What is done with selected tokens and with the rest: one small function an objective, weights for the kernel.

The objective of an optimiser batch with N response tokens is
`(1/N) * sum_n selected_n ? CE_n : weight * KL(teacher_n || student_n)` (Liu, Benjamin,
Zador 2025, arXiv 2503.16511), with any other pair of objectives in place of the two. Sums are divided once by the
N of the whole optimiser batch, so that accumulation and padding change nothing. This file knows neither how
tokens were selected nor how the divergence is computed.
"""

import torch
from torch import Tensor

from tokenuq_ml.config import AblationSpec, ObjectiveSpec, user_code
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels import formulas
from tokenuq_ml.kernels.weight_rule import Gain, Weights
from tokenuq_ml.training.selection import Tokens


def mle(objective: ObjectiveSpec) -> tuple[float, float]:
    """`l`, cross-entropy with the label. So too `dft` and `eaft`, whose further factors are `GAINS`."""
    return 1.0, 0.0


def distill(objective: ObjectiveSpec) -> tuple[float, float]:
    """`weight` times the divergence to the teacher."""
    return 0.0, objective.distill.weight


def none(objective: ObjectiveSpec) -> tuple[float, float]:
    """Nothing: the token is not trained."""
    return 0.0, 0.0


OBJECTIVES = {"mle": mle, "dft": mle, "eaft": mle, "distill": distill, "none": none}

GAINS = {"dft": formulas.probability_gain, "eaft": formulas.top_entropy_gain}
"""Factors of the cross-entropy that follow from the student's own logits, without a gradient of their own."""


def token_weights(ablation: AblationSpec, selected_N: Tensor, tokens: Tokens | None = None) -> Weights:
    """Float32 weights of each token, from the mask of the selected ones.

    Args:
        tokens: what a user's own function (`module:function`) is given. It returns `[N]`, the weight of each
            token's cross-entropy, or `Weights` of cross-entropy and divergence.

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
                f"{objective.kind} must give a finite weight of at least 0 for each of the {len(selected_N)} tokens, "
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
