"""The terms of the training loss: cross-entropy, divergence and their sum, a block of logits at a time.

`training_loss.py` decides which tokens get which term.

Shapes: N response tokens, M of the N, R of those reduced at a time, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenuq_ml.kernels import formulas
from tokenuq_ml.kernels.backend import backend_of
from tokenuq_ml.kernels.gradients import Gradients
from tokenuq_ml.kernels.head import Head, accumulation_dtype
from tokenuq_ml.kernels.mean_embeddings import TeacherStates
from tokenuq_ml.kernels.observers import Observer, together
from tokenuq_ml.kernels.scores import losses_of_product, token_losses
from tokenuq_ml.kernels.token_statistics import TokenStatistics
from tokenuq_ml.kernels.weight_rule import BatchDecision, Gain, Terms, Weights

if TYPE_CHECKING:
    from tokenuq_ml.config import DistillSpec


@dataclass(frozen=True)
class TeacherTerm:
    """The divergence to a teacher, as one term of the training loss."""

    states: TeacherStates
    """Mean embeddings give only forward KL at temperature 1, for a frozen head without soft-capping."""
    divergence: str = "forward_kl"
    """A key of `formulas.DIVERGENCES`."""
    temperature: float = 1.0
    head: Head | None = None
    """The teacher's head, if it is not the student's: a trainable head changes, its teacher's does not."""
    top_k: int | None = None
    """How many of the teacher's likeliest tokens are kept, renormalised; None: all. Not with mean embeddings."""

    @classmethod
    def of(cls, distillation: DistillSpec, states: TeacherStates, head: Head | None) -> TeacherTerm:
        """Return the term that an ablation's `distill` describes."""
        return cls(states, distillation.divergence, distillation.temperature, head, distillation.top_k)

    @property
    def has_mean_embeddings(self) -> bool:
        """Whether the states are mean embeddings rather than hidden states."""
        return self.states.mean_ND is not None


class MicroBatchTerms:
    """The tokens of a micro-batch, with the values and gradients that the terms of the loss add."""

    def __init__(
        self,
        hidden_ND: Tensor,
        head: Head,
        label_N: Tensor,
        statistics: TokenStatistics | None,
        observe: Observer | None,
    ):
        self.statistics, self.observe = statistics, observe
        self.grads = Gradients(hidden_ND, head)
        self.hidden_ND, self.head, self.label_N = hidden_ND.detach(), head, label_N
        self.backend = backend_of(hidden_ND)
        self.kept_NV: Tensor | None = None
        """The product of all tokens, if it is known and kept (`Backend.keeps`)."""
        self.loss_N = torch.zeros(len(label_N), dtype=accumulation_dtype(hidden_ND), device=hidden_ND.device)
        self.divergence_N = torch.zeros_like(self.loss_N)

    def compute_losses(self) -> None:
        """Compute the cross-entropy of every token, without a gradient, and show its logits to the observers."""
        observe, head, rows = self.observer_of_all(), self.head, len(self.label_N)
        size = rows * head.vocabulary * head.weight_VD.element_size()
        if not rows or not self.backend.keeps(self.hidden_ND.device, size):
            self.loss_N.copy_(token_losses(self.hidden_ND, head, self.label_N, observe))
            return
        self.kept_NV = head.product(self.hidden_ND)
        self.loss_N.copy_(losses_of_product(self.kept_NV, slice(0, rows), head, self.label_N, observe))

    def student_product(self, index_C: Tensor) -> Tensor:
        """Return the product of some tokens with the head, whose memory the gradient may take."""
        return self.head.product(self.hidden_ND[index_C]) if self.kept_NV is None else self.kept_NV[index_C]

    def fill_losses(self, index_M: Tensor) -> None:
        """Compute the cross-entropy of some tokens, without a gradient."""
        observe = self.observer(index_M)
        self.loss_N[index_M] = token_losses(self.hidden_ND[index_M], self.head, self.label_N[index_M], observe)

    def forget_unweighted(self, weights: Weights, keep_losses: bool) -> None:
        """Set what was computed of tokens without a weight to what it is where these are left out."""
        is_mle_N, is_distilled_N = (weight_N != 0 for weight_N in weights)
        self.divergence_N.masked_fill_(~is_distilled_N, 0.0)
        if not keep_losses:
            self.loss_N.masked_fill_(~is_mle_N, 0.0)
            if self.statistics is not None:
                self.statistics.keep(is_mle_N | is_distilled_N)

    def observer(self, index_M: Tensor) -> Observer | None:
        """Return the function that adds blocks of M of the tokens to the statistics, if they are wanted."""
        return None if self.statistics is None else self.statistics.observer(self.label_N, index_M)

    def observer_of_all(self) -> Observer | None:
        """Return the function that gets the blocks of every token, from which the rule's losses are computed."""
        return together(self.observer(self.every_token), self.observe)

    @property
    def every_token(self) -> Tensor:
        """The indices of the N tokens."""
        return torch.arange(len(self.label_N), device=self.hidden_ND.device)

    def total(self, weights: Weights) -> Tensor:
        """Return the weighted sum of cross-entropies and divergences."""
        dtype = self.loss_N.dtype
        return (weights.mle_N.to(dtype) * self.loss_N + weights.distill_N.to(dtype) * self.divergence_N).sum()


class BlockTerms:
    """The terms of the loss of one block of logits: each stores its values and returns its weighted gradient."""

    def __init__(
        self,
        batch: MicroBatchTerms,
        decision: BatchDecision,
        teacher: TeacherTerm | None,
        gain: Gain | None,
        record_losses: bool,
    ):
        self.batch, self.teacher, self.gain, self.record_losses = batch, teacher, gain, record_losses
        self.weights, self.selected_N = decision.weights, decision.selected_N
        # Nothing reads it without a gain.
        self._gain_N = torch.empty(0) if gain is None else torch.ones_like(batch.loss_N)

    @property
    def decision(self) -> BatchDecision:
        """The decision, with the gain in its weights."""
        if self.gain is None:
            return BatchDecision(self.weights, self.selected_N)
        mle_N = self.weights.mle_N.to(self._gain_N.dtype) * self._gain_N
        return BatchDecision(self.weights._replace(mle_N=mle_N), self.selected_N)

    def on_logits(self, terms: Terms) -> Callable[..., Tensor]:
        """Return `function(index_R, logits_RV[, teacher_RV])` of some terms, which returns the weighted gradient."""
        if terms.mle and terms.distill:
            return self.sum
        return self.divergence if terms.distill else self.cross_entropy

    def cross_entropy(self, index_R: Tensor, logits_RV: Tensor) -> Tensor:
        """Add the cross-entropy term."""
        label_R = self.batch.label_N[index_R]
        loss_R, grad_RV = formulas.cross_entropy(logits_RV, label_R)
        if self.batch.statistics is not None:
            self.batch.statistics.add_trained(index_R, logits_RV, label_R, loss_R, grad_RV)
        if self.gain is not None:
            self._gain_N[index_R], slope_R = self.gain(logits_RV, loss_R, self.selected_N[index_R])
            grad_RV *= slope_R[:, None]
        self.batch.loss_N[index_R] = loss_R
        grad_RV *= self.weights.mle_N[index_R, None].to(grad_RV.dtype)
        return grad_RV

    def divergence(self, index_R: Tensor, logits_RV: Tensor, teacher_RV: Tensor) -> Tensor:
        """Add the divergence from the teacher's logits, and read what the record wants off the student's."""
        if self.record_losses:
            self.batch.loss_N[index_R] = formulas.label_loss(logits_RV, self.batch.label_N[index_R])
        if self.batch.statistics is not None:
            self.batch.statistics.add(index_R, logits_RV, self.batch.label_N[index_R])
        return self._weighted_divergence(index_R, logits_RV, teacher_RV)

    def sum(self, index_R: Tensor, logits_RV: Tensor, teacher_RV: Tensor) -> Tensor:
        """Add both terms of the same tokens."""
        grad_RV = self.cross_entropy(index_R, logits_RV)
        grad_RV += self._weighted_divergence(index_R, logits_RV, teacher_RV)
        return grad_RV

    def _weighted_divergence(self, index_R: Tensor, logits_RV: Tensor, teacher_RV: Tensor) -> Tensor:
        assert self.teacher is not None
        self.batch.divergence_N[index_R], grad_RV = divergence(logits_RV, teacher_RV, self.teacher)
        grad_RV *= self.weights.distill_N[index_R, None].to(grad_RV.dtype)
        return grad_RV


def divergence(logits_RV: Tensor, teacher_RV: Tensor, teacher: TeacherTerm) -> tuple[Tensor, Tensor]:
    """Return divergence and gradient; of different vocabularies, over the ids that both have.

    One model may have more padding rows after the tokens than the other. With V' the smaller number of logits, both
    distributions are softmaxes of the first V' logits; the student's other logits have no gradient.
    """
    ours, common = logits_RV.shape[1], min(logits_RV.shape[1], teacher_RV.shape[1])
    value_R, grad_RV = formulas.divergence(
        teacher.divergence, logits_RV[:, :common], teacher_RV[:, :common], teacher.temperature, teacher.top_k
    )
    return value_R, grad_RV if common == ours else torch.nn.functional.pad(grad_RV, (0, ours - common))
