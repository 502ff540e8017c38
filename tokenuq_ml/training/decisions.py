"""From the tokens of an optimiser batch to the decision that the training loss applies to a micro-batch.

`decide` is the only path from an ablation to masks and weights. It runs at one of two moments:

- The micro-batch is the complete optimiser batch: the kernel computes the losses and calls `SelectionRule.decide`.
- The optimiser batch has several micro-batches or ranks: `TokenObjective` decides over all of them before the first,
  and gives each micro-batch its part of the decision.

Shapes: N response tokens of a micro-batch or an optimiser batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.loss_terms import TeacherTerm
from tokenuq_ml.kernels.observers import Observer
from tokenuq_ml.kernels.token_statistics import TokenStatistics
from tokenuq_ml.kernels.training_loss import TrainingLoss
from tokenuq_ml.kernels.weight_rule import BatchDecision, KnownTerms, WeightRule, Weights
from tokenuq_ml.training.objectives import possible_terms, token_weights
from tokenuq_ml.training.selection import known_count, select
from tokenuq_ml.training.student_columns import StudentColumns
from tokenuq_ml.training.token_batch import TokenBatch
from tokenuq_ml.training.tokens import Tokens, join
from tokenuq_ml.transfers import to_device

if TYPE_CHECKING:
    from tokenuq_ml.config import AblationSpec


def decide(ablation: AblationSpec, tokens: Tokens, static_N: Tensor | None = None) -> BatchDecision:
    """Return which of the tokens are selected, and the weights of all.

    Weights that the data give tokens multiply those of the objectives. They have no influence on selection.

    Args:
        ablation: which tokens are selected, and how selected tokens and the rest are trained.
        tokens: the N tokens that compete for selection.
        static_N: the mask, if the selection was decided before training.

    Raises:
        InputError: the ablation needs what the Trainer does not give, or a user's function returns a wrong result.
    """
    device = tokens.loss_N.device
    selected_N = select(ablation.select, tokens) if static_N is None else to_device(static_N, device)
    weights = token_weights(ablation, selected_N, tokens)
    if tokens.weight_N is not None:
        weights = Weights(*(column_N * tokens.weight_N.to(column_N) for column_N in weights))
    return BatchDecision(weights, selected_N, _known_terms(ablation, tokens, static_N))


def _known_terms(ablation: AblationSpec, tokens: Tokens, static_N: Tensor | None) -> KnownTerms | None:
    """Return what the host knows of the decision without its result."""
    of_selected, of_rest = possible_terms(ablation.selected), possible_terms(ablation.rest)
    if of_selected is None or of_rest is None:
        return None
    if static_N is None:
        return KnownTerms(known_count(ablation.select, tokens), of_selected, of_rest)
    return KnownTerms(int(static_N.sum()) if static_N.device.type == "cpu" else None, of_selected, of_rest)


@dataclass(frozen=True)
class SelectionRule:
    """The `WeightRule` of a micro-batch that is decided on its own, when the kernel knows its losses."""

    ablation: AblationSpec
    tokens: Callable[[Tensor], Tokens]
    """The micro-batch's tokens, given `loss_N`."""
    static_N: Tensor | None = None
    """The mask, if the selection was decided before training."""

    @property
    def needs_losses(self) -> bool:
        """Whether selection or weights depend on the student's losses."""
        return self.ablation.needs_student_losses

    def decide(self, loss_N: Tensor) -> BatchDecision:
        """Select among the micro-batch's tokens."""
        if self.ablation.functions and not torch.isfinite(loss_N).all():
            # Training stops at this loss; a user's function is not asked, so that its error does not come first.
            return BatchDecision(Weights(loss_N, torch.zeros_like(loss_N)), torch.zeros_like(loss_N, dtype=torch.bool))
        return decide(self.ablation, self.tokens(loss_N), self.static_N)


@dataclass
class MicroBatch:
    """A micro-batch of an optimiser step, and what is known of it before its gradient is computed."""

    batch: TokenBatch
    rule: WeightRule
    """Decides its tokens: a `SelectionRule`, or its part of a decision over the optimiser batch."""
    loss_N: Tensor | None = None
    """The losses by which the optimiser batch was decided; None if no pass was made for them."""
    student: StudentColumns | None = None
    """What the decision reads of the student's own distributions; None if it reads nothing of them."""
    statistics: TokenStatistics | None = None
    """The statistics of that pass; None if it was not made, or the log does not have them."""
    generators: Sequence[Tensor] = ()
    """States of torch's generators before the last forward pass, for a repetition of it."""
    is_finite: bool = True
    """Whether the loss of the last forward pass was finite."""
    out: TrainingLoss | None = None
    """What that pass computed, if it was not."""

    teacher: TeacherTerm | None = None
    """The teacher's distributions, if the pass for the losses has asked for them."""

    def observer(self, hidden_ND: Tensor, head: Head, teacher: TeacherTerm | None) -> Observer | None:
        """Return what fills the columns of the student from the logits of its losses, in a pass with these states."""
        return self.student.observer(hidden_ND, head, teacher) if self.student else None


def decide_together(
    ablation: AblationSpec,
    micro_batches: Sequence[MicroBatch],
    tokens: Sequence[Tokens],
    masks: Sequence[Tensor | None],
    accelerator: Accelerator,
) -> None:
    """Decide all micro-batches of all ranks as one batch, and give each micro-batch its part as its rule.

    Args:
        ablation: which tokens are selected, and how selected tokens and the rest are trained.
        micro_batches: those of this rank.
        tokens: the tokens of each, on the CPU.
        masks: the mask of each, if the selection was decided before training.
        accelerator: gathers from the ranks.
    """
    gather = gather_object if accelerator.num_processes > 1 else list
    ranks = gather([join(tokens)])
    static_N = None if masks[0] is None else torch.cat(gather([torch.cat([m for m in masks if m is not None])]))
    decision = decide(ablation, join(ranks), static_N)
    start = sum(len(rank.loss_N) for rank in ranks[: accelerator.process_index])
    for micro_batch, part in zip(micro_batches, tokens, strict=True):
        rows = slice(start, start := start + len(part.loss_N))
        micro_batch.rule = decision.part(rows, accelerator.device)
