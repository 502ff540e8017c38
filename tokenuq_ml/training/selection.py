"""Which response tokens are selected: a function per score, and one rule that selects by a score.

A score is a number per token. The rule takes the highest or lowest quantile of the optimiser batch, or the scores above
or below a threshold, by token or by example. `objectives.py` says how selected tokens and the rest are trained.

Notation: l is the student's cross-entropy with the label; N response tokens of an optimiser batch, E examples.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from tokenuq_ml import seeding
from tokenuq_ml.config import Schedule, SelectSpec, registry, user_code
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.data.token_categories import CATEGORIES
from tokenuq_ml.errors import InputError


@dataclass(frozen=True)
class Tokens:
    """The N response tokens of an optimiser batch, as selectors and users' own objectives read them.

    Tokens are ordered by rank, micro-batch, example and position.
    """

    loss_N: Tensor
    """The student's cross-entropy at this step in nats; zeros if the ablation does not depend on it."""
    example_N: Tensor
    """int64: the index of each token's example in the batch."""
    example_ids: tuple[str, ...] = ()
    """Ids of the examples by that index; empty if a Trainer's data have none."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """Columns of the teacher's tables that the ablation reads, `[N]` each, by names of `registry.COLUMNS`."""
    teacher_mean: float = float("nan")
    """Mean of the teacher's loss over the train split in nats."""
    step: int = 1
    """The optimiser step, from 1."""
    steps: int = 1
    """Optimiser steps of the training."""
    seed: int = 0
    weight_N: Tensor | None = None
    """float32: the factor that the data give each token's term of the objective; None if all are 1."""

    @property
    def progress(self) -> float:
        """Share of training done: 0 at the first step, 1 at the last."""
        return (self.step - 1) / (self.steps - 1) if self.steps > 1 else 0.0

    def column(self, name: str) -> Tensor:
        """Return a column of the teacher's tables.

        Raises:
            InputError: the Trainer does not provide it.
        """
        if name not in self.columns:
            table, column = registry.COLUMNS[name]
            raise InputError(
                f"the selection reads column {column!r} of the table {table}, which this Trainer does not provide; "
                "override `token_columns` of TokenObjective, or select by a score without columns (loss, random)"
            )
        return self.columns[name]


def join(parts: Sequence[Tokens]) -> Tokens:
    """Return the tokens of several micro-batches of one step as one batch, in their order."""
    first, offsets = parts[0], [0, *itertools.accumulate(_examples(part) for part in parts)]
    return replace(
        first,
        loss_N=torch.cat([part.loss_N for part in parts]),
        example_N=torch.cat([part.example_N + offset for part, offset in zip(parts, offsets, strict=False)]),
        example_ids=tuple(name for part in parts for name in part.example_ids),
        columns={name: torch.cat([part.columns[name] for part in parts]) for name in first.columns},
        weight_N=_joined_weights(parts),
    )


def _joined_weights(parts: Sequence[Tokens]) -> Tensor | None:
    if all(part.weight_N is None for part in parts):
        return None
    return torch.cat([torch.ones_like(p.loss_N) if p.weight_N is None else p.weight_N.to(p.loss_N) for p in parts])


def _examples(tokens: Tokens) -> int:
    return len(tokens.example_ids) or (int(tokens.example_N.max()) + 1 if len(tokens.example_N) else 0)


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


def aleatoric(tokens: Tokens) -> Tensor:
    """Score by the expected entropy under the teacher's dropout: uncertainty that training cannot reduce."""
    return tokens.column("expected_entropy")


def base_loss(tokens: Tokens) -> Tensor:
    """Score by the base model's cross-entropy."""
    return tokens.column("base_loss")


def base_perplexity(tokens: Tokens) -> Tensor:
    """Score by `exp(l)` under the base model (selective token masking, Wu et al. 2025, arXiv 2501.14315)."""
    return tokens.column("base_loss").exp()


COMPLEXITY = {"special": 0, "whitespace": 0, "punctuation": 0, "word": 1, "subword": 1, "number": 2, "code": 2}


def complexity(tokens: Tokens) -> Tensor:
    """Score 0 for structure, 1 for words, 2 for numbers and code: the order of an explicit curriculum."""
    of_category = torch.tensor([float(COMPLEXITY[name]) for name in CATEGORIES])
    category_N = tokens.column("category").long()
    return of_category.to(category_N.device)[category_N]


def random(tokens: Tokens) -> Tensor:
    """Score by uniform draws in [0, 1), new at each step, that depend only on seed and step."""
    draws = seeding.step_generator(tokens.seed, tokens.step).random(len(tokens.loss_N))
    return torch.from_numpy(draws).to(tokens.loss_N.device)


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
    return torch.from_numpy(np.concatenate(draws) if draws else np.empty(0)).to(tokens.loss_N.device)


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
    "aleatoric": aleatoric,
    "base_loss": base_loss,
    "base_perplexity": base_perplexity,
    "complexity": complexity,
    "random": random,
    "fixed_random": fixed_random,
}


def extreme_quantile(score_N: Tensor, quantile: float, keep: str = "top") -> Tensor:
    """Return the mask of the `ceil(quantile * N)` highest or lowest scores; of equal scores, the earlier are taken.

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


def value_at_step(value: float | Schedule, tokens: Tokens) -> float:
    """Return a configured number at the tokens' step; a schedule moves from step to step."""
    return value.at(tokens.progress) if isinstance(value, Schedule) else value


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
