"""Which response tokens are selected: one rule that selects by a score.

A score is a number per token (`selectors.py`). The rule takes the highest or lowest quantile of the optimiser batch, or
the scores above or below a threshold, by token or by example. `objectives.py` says how selected tokens and the rest are
trained.

Notation: N response tokens of an optimiser batch, E examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenuq_ml.config import user_code
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.errors import InputError
from tokenuq_ml.training.selectors import SELECTORS
from tokenuq_ml.training.tokens import Tokens

if TYPE_CHECKING:
    from tokenuq_ml.config import Schedule, SelectSpec


def extreme_quantile(score_N: Tensor, quantile: float, keep: str = "top") -> Tensor:
    """Return the mask of the `ceil(quantile * N)` highest or lowest scores; of equal scores, the earlier are taken.

    By a stable sort, because `topk` does not say which of equal scores it takes. The number is known without the
    scores, so that nothing waits for a GPU.

    Args:
        score_N: the scores.
        quantile: the share to take.
        keep: `top` or `bottom`.
    """
    order_N = torch.argsort(score_N, descending=keep == "top", stable=True)
    mask_N = torch.zeros_like(score_N, dtype=torch.bool)
    mask_N[order_N[: count_selected(quantile, len(score_N))]] = True
    return mask_N


def select(spec: SelectSpec, tokens: Tokens) -> Tensor:
    """Return the mask of the selected tokens.

    Args:
        spec: the score and the rule.
        tokens: the N tokens to select from.

    Raises:
        InputError: the score needs what the Trainer does not provide, or a user's function does not return N numbers.
    """
    score_N = _scores(spec.by, tokens)
    if spec.unit == "token":
        return _apply_rule(spec, score_N, tokens)
    present_E, index_N = torch.unique(tokens.example_N, return_inverse=True)
    total_E = torch.zeros(len(present_E), dtype=score_N.dtype, device=score_N.device).index_add_(0, index_N, score_N)
    mean_E = total_E / torch.bincount(index_N, minlength=len(present_E)).clamp(min=1)
    return _apply_rule(spec, mean_E, tokens)[index_N]


def _apply_rule(spec: SelectSpec, score: Tensor, tokens: Tokens) -> Tensor:
    """Return the mask of the scores, of tokens or of examples, that the rule keeps."""
    if spec.by_quantile:
        return extreme_quantile(score, value_at_step(spec.quantile, tokens), spec.keep)
    threshold = tokens.teacher_mean if spec.threshold == "teacher_mean" else value_at_step(spec.threshold, tokens)
    if threshold != threshold:
        raise InputError(
            "threshold 'teacher_mean' needs the teacher's losses, which this Trainer does not provide; "
            "override `teacher_mean` of TokenObjective, or set a number"
        )
    return score > threshold if spec.keep == "above" else score <= threshold


def known_count(spec: SelectSpec, tokens: Tokens) -> int | None:
    """Return how many tokens `select` selects; None if that follows from the scores, or from the examples' lengths."""
    if not spec.by_quantile or spec.unit != "token":
        return None
    return count_selected(value_at_step(spec.quantile, tokens), len(tokens.loss_N))


def value_at_step(value: float | Schedule, tokens: Tokens) -> float:
    """Return a configured number at the tokens' step; a schedule moves from step to step."""
    return value if isinstance(value, int | float) else value.at(tokens.progress)


def _scores(by: str, tokens: Tokens) -> Tensor:
    """Return the scores of a named selector or of a user's function."""
    if not user_code.is_reference(by):
        return SELECTORS[by](tokens)
    score_N = torch.as_tensor(user_code.load(by)(tokens)).to(tokens.loss_N.device)
    if score_N.shape != tokens.loss_N.shape or torch.isnan(score_N.float()).any():
        raise InputError(
            f"{by} must return one number for each of the {len(tokens.loss_N)} tokens, but returned a tensor of shape "
            f"{tuple(score_N.shape)}{' with NaN' if score_N.shape == tokens.loss_N.shape else ''}"
        )
    return score_N
