"""Factors of a token's cross-entropy that follow from the student's own logits, one function per objective.

With l the cross-entropy and p = exp(-l) the label's probability, a factor f(p) that has no gradient gives the loss
`f l` the gradient `f dl`. A loss g(l) whose factor has a gradient is the pair of `g(l) / l` and its slope `g'(l)`,
because `dg = g'(l) dl`. Neither needs a further head product.

Shapes: R rows (tokens) of a block, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Factor(NamedTuple):
    """What multiplies a block's cross-entropies in the value of the loss, and in its gradient."""

    value_R: Tensor
    slope_R: Tensor


def probability(logits_RV: Tensor, loss_R: Tensor) -> Factor:
    """Return the label's probability (dynamic fine-tuning, Wu et al. 2025, arXiv 2508.05629)."""
    return without_gradient(torch.exp(-loss_R))


def probability_power(logits_RV: Tensor, loss_R: Tensor, exponent: float) -> Factor:
    """Return `p^k`; 0 is cross-entropy, 1 dynamic fine-tuning.

    The gradient is that of `(1 - p^k) / k`, the family of objectives of Li et al. 2025 (arXiv 2510.00526), which leans
    the more on what the model knows already the larger k is.
    """
    return without_gradient(torch.exp(-exponent * loss_R))


def focal(logits_RV: Tensor, loss_R: Tensor, gamma: float) -> Factor:
    """Return `(1 - p)^gamma` and the slope of the focal loss (Lin et al. 2017, arXiv 1708.02002).

    `g(l) = (1 - p)^gamma l` with `dp/dl = -p`, so `g'(l) = (1 - p)^gamma + gamma (1 - p)^(gamma - 1) p l`.
    """
    p_R = torch.exp(-loss_R)
    # From the loss: near p = 1 the difference 1 - p would lose its digits.
    rest_R = -torch.expm1(-loss_R)
    value_R = rest_R**gamma
    # As p l / (1 - p) tends to 1 for l to 0, this has no division by 0.
    ratio_R = torch.where(rest_R > 0, p_R * loss_R / rest_R.clamp(min=torch.finfo(loss_R.dtype).tiny), 1.0)
    return Factor(value_R, value_R * (1 + gamma * ratio_R))


TOP_ENTROPY_TOKENS, TOP_ENTROPY_SCALE = 20, 3.0
"""Constants of entropy-adaptive fine-tuning; the entropy of 20 tokens is at most log 20, which is nearly 3."""


def top_entropy(logits_RV: Tensor, loss_R: Tensor) -> Factor:
    """Return the entropy among the 20 likeliest tokens, over 3 (EAFT, 2026, arXiv 2601.02151)."""
    top_RK = logits_RV.topk(min(TOP_ENTROPY_TOKENS, logits_RV.shape[1]), sorted=False).values
    logp_RK = torch.log_softmax(top_RK, -1)
    return without_gradient(-(logp_RK.exp() * logp_RK).sum(1) / TOP_ENTROPY_SCALE)


def without_gradient(factor_R: Tensor) -> Factor:
    """Return a factor that is a constant in the gradient."""
    return Factor(factor_R, factor_R)
