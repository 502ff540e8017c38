"""Which response tokens are trained: one small function a selector.

A selector sees scores of N tokens and gives a mask; it knows neither models nor
what is done with the tokens that it takes (`objectives.py`).
"""

import torch
from torch import Tensor

from tokenuq_ml.quantiles import count_selected
from tokenuq_ml.specs import SelectSpec


def extreme_quantile(score_N: Tensor, quantile: float, keep: str = "top") -> Tensor:
    """`mask_N` of the `ceil(quantile * N)` highest (or lowest) scores; ties go to the earlier token."""
    order_N = torch.argsort(score_N, descending=keep == "top", stable=True)
    mask_N = torch.zeros_like(score_N, dtype=torch.bool)
    mask_N[order_N[: count_selected(quantile, len(score_N))]] = True
    return mask_N


def select_all(score_N: Tensor, spec: SelectSpec) -> Tensor:
    """Every token."""
    return torch.ones_like(score_N, dtype=torch.bool)


def select_by_loss(score_N: Tensor, spec: SelectSpec) -> Tensor:
    """The quantile with the highest (or lowest) cross-entropy (Liu, Benjamin, Zador 2025, arXiv 2503.16511)."""
    return extreme_quantile(score_N, spec.quantile, spec.keep)


SELECTORS = {"all": select_all, "loss": select_by_loss}


def select(spec: SelectSpec, score_N: Tensor) -> Tensor:
    """`mask_N` of the selected tokens, by the scores that `spec.by` names."""
    return SELECTORS[spec.by](score_N, spec)
