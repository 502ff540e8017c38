"""The training loss of the response tokens of a micro-batch, with its gradient computed in the forward pass.

Shapes: N response tokens, C of them in one product, R of those reduced at a time, D hidden size, V vocabulary;
M of the N tokens are trained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tokenuq_ml.kernels import formulas
from tokenuq_ml.kernels.gradients import Gradients
from tokenuq_ml.kernels.head import Head, accumulation_dtype, blocks, chunks
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings, row_dot
from tokenuq_ml.kernels.observers import Observer, together
from tokenuq_ml.kernels.scores import token_losses
from tokenuq_ml.kernels.token_statistics import TokenStatistics
from tokenuq_ml.kernels.weight_rule import BatchDecision, Gain, WeightRule, Weights


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

    @property
    def has_mean_embeddings(self) -> bool:
        """Whether the states are mean embeddings rather than hidden states."""
        return self.states.mean_ND is not None


class TrainingLoss(NamedTuple):
    """The loss of a micro-batch. Only `total` is differentiable; the other fields are for the record."""

    total: Tensor
    loss_N: Tensor
    """Cross-entropy: of every token if the rule or the caller asked for it; else 0 for those without `mle` weight."""
    divergence_N: Tensor
    """Divergence of tokens with a `distill` weight, else 0."""
    weights: Weights
    """The weights that the rule decided; `mle_N` includes the gain."""
    selected_N: Tensor
    """The mask that the rule decided."""


def training_loss(
    hidden_ND: Tensor,
    head: Head,
    label_N: Tensor,
    rule: WeightRule,
    *,
    teacher: TeacherTerm | None = None,
    gain: Gain | None = None,
    every_loss: bool = False,
    statistics: TokenStatistics | None = None,
    observe: Observer | None = None,
) -> TrainingLoss:
    """Return `sum_n mle_n * gain_n * CE_n + distill_n * divergence(teacher_n, student_n)`, and its gradient.

    CE is at temperature 1; divergences are those of `formulas.py`, in nats. The gradient is computed in the forward
    pass, with respect to the hidden states, and to the head's weight and bias if they require it. Head products per
    token:

    - CE: 2 (logits, gradient).
    - divergence from hidden states: 3 (the teacher's logits too); from mean embeddings: 2.
    - a rule that needs losses: 1 more for every token. With mean embeddings none more: the same 2 products serve
      losses and gradients, but every token pays them.
    - a trainable head: 1 more for each token that is trained.

    Args:
        hidden_ND: states from which the tokens are predicted, after the final norm.
        head: the student's output head.
        label_N: ids of the tokens.
        rule: decides which tokens are selected and their weights; asked once.
        teacher: required if a token has a `distill` weight.
        gain: a factor per token for its cross-entropy; default: 1. Not with mean embeddings.
        every_loss: also compute the cross-entropy of tokens without an `mle` weight, for the record. Costs 1 product
            for each token with neither weight, and none for the others.
        statistics: gets the entropy and top-1 accuracy of every token whose logits are computed: of all tokens if the
            rule needs losses or with `every_loss`, else of those with a weight. Costs no product.
        observe: for a rule that needs losses: gets each block of logits before the rule is asked. Costs no product.

    Raises:
        ValueError: a token is to be distilled and `teacher` is None, or mean embeddings cannot give what is asked.
    """
    micro_batch = _MicroBatch(hidden_ND, head, label_N, statistics, observe if rule.needs_losses else None)
    with torch.no_grad():
        if teacher is not None and teacher.has_mean_embeddings:
            decision = _add_terms_from_mean_embeddings(micro_batch, rule, teacher, gain)
        else:
            decision = _add_terms_from_logits(micro_batch, rule, teacher, gain, every_loss)
        weights = decision.weights
        if every_loss and not rule.needs_losses:
            micro_batch.fill_losses((weights.mle_N == 0) & (weights.distill_N == 0))
        total = micro_batch.total(weights)
    return TrainingLoss(
        micro_batch.grads.attach(total), micro_batch.loss_N, micro_batch.divergence_N, weights, decision.selected_N
    )


class _MicroBatch:
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
        self.loss_N = torch.zeros(len(label_N), dtype=accumulation_dtype(hidden_ND), device=hidden_ND.device)
        self.divergence_N = torch.zeros_like(self.loss_N)

    def fill_losses(self, mask_N: Tensor) -> None:
        """Compute the cross-entropy of some tokens, without a gradient."""
        index_M = mask_N.nonzero()[:, 0]
        observe = self.observer(index_M)
        self.loss_N[index_M] = token_losses(self.hidden_ND[index_M], self.head, self.label_N[index_M], observe)

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


def _add_terms_from_logits(
    batch: _MicroBatch, rule: WeightRule, teacher: TeacherTerm | None, gain: Gain | None, every_loss: bool
) -> BatchDecision:
    """Add both terms from logits: losses if the rule needs them, then the decision, then a pass per term."""
    if rule.needs_losses:
        batch.loss_N.copy_(token_losses(batch.hidden_ND, batch.head, batch.label_N, batch.observer_of_all()))
        batch.statistics = None
    decision = rule.decide(batch.loss_N)
    if teacher is None and decision.weights.distill_N.any():
        raise ValueError("tokens are to be distilled, and there is no teacher")
    decision = _add_cross_entropy(batch, decision, gain)
    if teacher is not None:
        _add_divergence(batch, decision.weights, teacher, record_losses=every_loss and not rule.needs_losses)
    return decision


def _add_cross_entropy(batch: _MicroBatch, decision: BatchDecision, gain: Gain | None) -> BatchDecision:
    """Add the cross-entropy term; return the decision with the gain in its weights."""
    weights = decision.weights
    gain_N = torch.ones_like(batch.loss_N)

    def cross_entropy(index_R: Tensor, logits_RV: Tensor) -> tuple[Tensor, Tensor]:
        label_R = batch.label_N[index_R]
        loss_R, grad_RV = formulas.cross_entropy(logits_RV, label_R)
        if batch.statistics is not None:
            batch.statistics.add_trained(index_R, logits_RV, label_R, loss_R, grad_RV)
        if gain is not None:
            gain_N[index_R] = gain(logits_RV, loss_R, decision.selected_N[index_R])
            grad_RV *= gain_N[index_R, None]
        return loss_R, grad_RV

    _add_term(batch, weights.mle_N, batch.loss_N, cross_entropy)
    if gain is None:
        return decision
    with_gain = weights._replace(mle_N=weights.mle_N.to(batch.loss_N.dtype) * gain_N)
    return BatchDecision(with_gain, decision.selected_N)


def _add_divergence(batch: _MicroBatch, weights: Weights, teacher: TeacherTerm, record_losses: bool) -> None:
    """Add the divergence from the teacher's hidden states; `record_losses` also reads CE off the same logits."""

    def divergence(index_R: Tensor, logits_RV: Tensor, teacher_RV: Tensor) -> tuple[Tensor, Tensor]:
        if record_losses:
            batch.loss_N[index_R] = formulas.label_loss(logits_RV, batch.label_N[index_R])
        if batch.statistics is not None:
            batch.statistics.add(index_R, logits_RV, batch.label_N[index_R])
        return _divergence(logits_RV, teacher_RV, teacher)

    assert teacher.states.hidden_ND is not None
    source = (teacher.states.hidden_ND, teacher.head or batch.head)
    _add_term(batch, weights.distill_N, batch.divergence_N, divergence, source)


def _divergence(logits_RV: Tensor, teacher_RV: Tensor, teacher: TeacherTerm) -> tuple[Tensor, Tensor]:
    """Return divergence and gradient; of different vocabularies, over the ids that both have.

    One model may have more padding rows after the tokens than the other. With V' the smaller number of logits, both
    distributions are softmaxes of the first V' logits; the student's other logits have no gradient.
    """
    ours, common = logits_RV.shape[1], min(logits_RV.shape[1], teacher_RV.shape[1])
    value_R, grad_RV = formulas.divergence(
        teacher.divergence, logits_RV[:, :common], teacher_RV[:, :common], teacher.temperature
    )
    return value_R, grad_RV if common == ours else torch.nn.functional.pad(grad_RV, (0, ours - common))


def _add_term(
    batch: _MicroBatch,
    weight_N: Tensor,
    value_N: Tensor,
    function: Callable[..., tuple[Tensor, Tensor]],
    *teacher: tuple[Tensor, Head],
) -> None:
    """Add one term for the tokens with a weight: values to `value_N`, weighted gradients to `batch.grads`.

    `function(index_R, logits_RV[, teacher_RV])` returns the values and gradients of one block. `teacher` is a pair of
    its hidden states and head, if the term reads its logits.
    """
    trained_M = weight_N.nonzero()[:, 0]
    sources = [(batch.hidden_ND, batch.head), *teacher]
    copies = 1 + len(sources)
    for chunk in chunks(len(trained_M), batch.head, copies):
        index_C = trained_M[chunk]
        products = [head.product(states_ND[index_C]) for states_ND, head in sources]
        for block in blocks(len(index_C), batch.head, copies):
            index_R = index_C[block]
            logits = [head.finish(product_CV[block]) for (_, head), product_CV in zip(sources, products, strict=True)]
            value_N[index_R], grad_RV = function(index_R, *logits)
            grad_RV *= weight_N[index_R, None].to(grad_RV.dtype)
            # The student's product is not needed any more, so its memory takes its gradient.
            products[0][block] = batch.head.product_gradient(grad_RV, logits[0])
        batch.grads.add(index_C, products[0])


def _add_terms_from_mean_embeddings(
    batch: _MicroBatch, rule: WeightRule, teacher: TeacherTerm, gain: Gain | None
) -> BatchDecision:
    """Add both terms in one pass over the head: losses, then the decision, then both gradients from mean embeddings."""
    _check_mean_embeddings_suffice(batch, teacher, gain)
    if rule.needs_losses:
        trained_M = batch.every_token
    else:
        decision = rule.decide(batch.loss_N)
        trained_M = (decision.weights.mle_N + decision.weights.distill_N).nonzero()[:, 0]
    hidden_MD, label_M = batch.hidden_ND[trained_M], batch.label_N[trained_M]
    observe = batch.observer_of_all() if rule.needs_losses else batch.observer(trained_M)
    student = mean_embeddings(hidden_MD, batch.head, label_M, observe)
    assert student.loss_N is not None
    batch.loss_N[trained_M] = student.loss_N
    if rule.needs_losses:
        decision = rule.decide(batch.loss_N)
    mle_M, distill_M = (weight_N[trained_M].to(batch.loss_N.dtype) for weight_N in decision.weights)
    assert teacher.states.mean_ND is not None and teacher.states.offset_N is not None
    mean_MD, offset_M = teacher.states.mean_ND[trained_M], teacher.states.offset_N[trained_M]
    # Rounding may leave less than 0. Clamped, the mean over tokens would be too high: in bfloat16 nearly twice.
    divergence_M = student.lse_N - row_dot(hidden_MD, mean_MD) - offset_M
    batch.divergence_N[trained_M] = torch.where(distill_M > 0, divergence_M, 0.0)
    grad_MD = student.mean_ND.to(batch.loss_N.dtype) * (mle_M + distill_M)[:, None]
    grad_MD -= batch.head.weight_VD[label_M] * (batch.head.scale * mle_M)[:, None]
    grad_MD -= mean_MD * distill_M[:, None]
    batch.grads.grad_ND[trained_M] = grad_MD.to(batch.grads.grad_ND.dtype)
    return decision


def _check_mean_embeddings_suffice(batch: _MicroBatch, teacher: TeacherTerm, gain: Gain | None) -> None:
    if (
        teacher.divergence != "forward_kl"
        or teacher.temperature != 1.0
        or not batch.head.is_linear
        or batch.grads.head_is_trained
        or gain is not None
    ):
        raise ValueError(
            "mean embeddings give only forward KL at temperature 1 of a frozen linear head, and "
            f"cross-entropy without a gain (divergence {teacher.divergence}, temperature {teacher.temperature}, "
            f"linear head {batch.head.is_linear}, trainable head {batch.grads.head_is_trained}, "
            f"gain {gain is not None}); use hidden states"
        )
