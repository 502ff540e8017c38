"""The objectives of selected tokens and of the rest, as weights for the training loss.

The paper's objective of an optimiser batch with N response tokens is
`(1/N) * sum_n selected_n ? CE_n : weight * KL(teacher_n || student_n)` (Liu, Benjamin, Zador 2025, arXiv 2503.16511).
An ablation may put any objectives in place of the two, and sum a cross-entropy and a divergence on the same token.
`TokenObjective` divides the sum once, by the N of the complete optimiser batch, so accumulation and padding change
nothing.

Each objective is a function of `label_weights.py` that returns the factors of a token's cross-entropy and of its
divergence to the teacher. Some have a further factor that the kernel computes from the student's logits (`FACTORS`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenuq_ml.config import user_code
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels import label_factors
from tokenuq_ml.kernels.label_factors import Factor
from tokenuq_ml.kernels.weight_rule import Gain, Terms, Weights
from tokenuq_ml.training import label_weights
from tokenuq_ml.training.label_weights import Shares
from tokenuq_ml.training.tokens import Tokens

if TYPE_CHECKING:
    from tokenuq_ml.config import AblationSpec, ObjectiveSpec

OBJECTIVES: dict[str, Callable[[ObjectiveSpec, Tokens], Shares]] = {
    "mle": label_weights.label,
    "dft": label_weights.label,
    "eaft": label_weights.label,
    "power": label_weights.label,
    "focal": label_weights.label,
    "talr": label_weights.talr,
    "iw_sft": label_weights.iw_sft,
    "forget": label_weights.forget,
    "epistemic_share": label_weights.epistemic_share,
    "label_trust": label_weights.label_trust,
    "distill": label_weights.divergence_only,
    "none": label_weights.nothing,
}

FACTORS: dict[str, Callable[..., Factor]] = {
    "dft": label_factors.probability,
    "eaft": label_factors.top_entropy,
    "power": label_factors.probability_power,
    "focal": label_factors.focal,
}
"""Factors of the cross-entropy that are computed from the student's own logits; settings are keyword arguments."""

FACTORS_OF_LOGITS = {"eaft"}
"""Those that need more than the token's cross-entropy."""


def token_weights(ablation: AblationSpec, selected_N: Tensor, tokens: Tokens) -> Weights:
    """Return float32 weights of each token, given which are selected.

    Args:
        ablation: the objectives of selected tokens and of the rest.
        selected_N: mask of the selected tokens.
        tokens: what objectives read, also a user's own function (`module:function`). That returns `[N]`, the weight of
            each token's cross-entropy, or `Weights` of cross-entropy and divergence.

    Raises:
        InputError: a user's function returned something else.
    """
    columns = [torch.zeros(len(selected_N), dtype=torch.float32, device=selected_N.device) for _ in range(2)]
    for objective, mask_N in ((ablation.selected, selected_N), (ablation.rest, ~selected_N)):
        given = _weights(objective, selected_N, tokens)
        columns = [
            torch.where(mask_N, weight.to(column_N), column_N)
            if isinstance(weight, Tensor)
            else column_N.masked_fill(mask_N, float(weight))
            for column_N, weight in zip(columns, given, strict=True)
        ]
    return Weights(*columns)


def possible_terms(objective: ObjectiveSpec) -> Terms | None:
    """Return which terms a token with this objective may have; None for a user's own function."""
    if user_code.is_reference(objective.kind):
        return None
    without_label = (label_weights.divergence_only, label_weights.nothing)
    return Terms(mle=OBJECTIVES[objective.kind] not in without_label, distill=objective.distill is not None)


def _weights(objective: ObjectiveSpec, selected_N: Tensor, tokens: Tokens) -> tuple[float | Tensor, float | Tensor]:
    if user_code.is_reference(objective.kind):
        return _own_weights(objective, selected_N, tokens)
    label, divergence = OBJECTIVES[objective.kind](objective, tokens)
    return label, divergence * objective.distill.weight if objective.distill is not None else 0.0


def _own_weights(objective: ObjectiveSpec, selected_N: Tensor, tokens: Tokens) -> Weights:
    given = user_code.load(objective.kind)(tokens)
    weights = given if isinstance(given, Weights) else Weights(torch.as_tensor(given), torch.zeros(len(selected_N)))
    for weight_N in weights:
        if weight_N.shape != selected_N.shape or not torch.isfinite(weight_N).all() or (weight_N < 0).any():
            raise InputError(
                f"{objective.kind} must return a finite weight of at least 0 for each of the {len(selected_N)} tokens, "
                "or Weights of two such tensors"
            )
    return Weights(*(weight_N.detach().float().to(selected_N.device) for weight_N in weights))


def token_gain(ablation: AblationSpec) -> Gain | None:
    """Return the factor of each token's cross-entropy, 1 for objectives without one; None if neither has one."""
    if not ablation.scales_loss:
        return None
    chosen, rest = _factor(ablation.selected), _factor(ablation.rest)

    def gain(logits_RV: Tensor, loss_R: Tensor, selected_R: Tensor) -> Factor:
        pairs = zip(chosen(logits_RV, loss_R), rest(logits_RV, loss_R), strict=True)
        return Factor(*(torch.where(selected_R, *pair) for pair in pairs))

    gain.reads_logits = not {ablation.selected.kind, ablation.rest.kind}.isdisjoint(FACTORS_OF_LOGITS)
    return gain


def _factor(objective: ObjectiveSpec) -> Callable[[Tensor, Tensor], Factor]:
    if objective.kind not in FACTORS:
        return lambda logits_RV, loss_R: label_factors.without_gradient(torch.ones_like(loss_R))
    assert objective.spec is not None
    settings = {name: objective.setting(name) for name in objective.spec.settings if name != "weight"}
    return partial(FACTORS[objective.kind], **settings)
