"""The training loss of the response tokens of a micro-batch, with its gradient computed in the forward pass.

Shapes: N response tokens, C of them in one product, R of those reduced at a time, D hidden size, V vocabulary;
M of the N tokens are trained.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tokenuq_ml.kernels.fused_terms import FusedTerms
from tokenuq_ml.kernels.head import Head, blocks, chunks
from tokenuq_ml.kernels.loss_terms import MicroBatchTerms, TeacherTerm
from tokenuq_ml.kernels.mean_embeddings import mean_embeddings, row_dot
from tokenuq_ml.kernels.observers import Observer
from tokenuq_ml.kernels.token_groups import TokenGroup, token_groups
from tokenuq_ml.kernels.token_statistics import TokenStatistics
from tokenuq_ml.kernels.weight_rule import BatchDecision, Gain, WeightRule, Weights


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
    - both on the same token: 3 from hidden states, 2 from mean embeddings.
    - a rule that needs losses: 1 more for every token; none more on an accelerator with memory for the product of all N
      tokens (`Backend.keeps`). With mean embeddings none more: the same 2 products serve losses and gradients, but
      every token pays them.
    - a trainable head: 1 more for each token that is trained.

    On an accelerator the host does not wait for the device if it knows how many tokens are selected
    (`token_groups.py`).

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
    micro_batch = MicroBatchTerms(hidden_ND, head, label_N, statistics, observe if rule.needs_losses else None)
    with torch.no_grad():
        if teacher is not None and teacher.has_mean_embeddings:
            decision, groups = _add_terms_from_mean_embeddings(micro_batch, rule, teacher, gain, every_loss)
        else:
            decision, groups = _add_terms_from_logits(micro_batch, rule, teacher, gain, every_loss)
        if every_loss and not rule.needs_losses:
            for group in groups:
                if not (group.terms.mle or group.terms.distill):
                    micro_batch.fill_losses(group.index_M)
        total = micro_batch.total(decision.weights)
    return TrainingLoss(
        micro_batch.grads.attach(total),
        micro_batch.loss_N,
        micro_batch.divergence_N,
        decision.weights,
        decision.selected_N,
    )


def _add_terms_from_logits(
    batch: MicroBatchTerms, rule: WeightRule, teacher: TeacherTerm | None, gain: Gain | None, every_loss: bool
) -> tuple[BatchDecision, list[TokenGroup]]:
    """Add both terms from logits: losses if the rule needs them, then the decision, then a pass per term."""
    if rule.needs_losses:
        batch.compute_losses()
        batch.statistics = None
    decision = rule.decide(batch.loss_N)
    groups = token_groups(decision, batch.backend)
    if teacher is None and any(group.terms.distill and len(group.index_M) for group in groups):
        raise ValueError("tokens are to be distilled, and there is no teacher")
    terms = FusedTerms(batch, decision, teacher, gain, record_losses=every_loss and not rule.needs_losses)
    for group in groups:
        if len(group.index_M) and (group.terms.mle or group.terms.distill):
            _add_term(batch, group, terms)
    if batch.backend.is_accelerator:
        batch.forget_unweighted(decision.weights, keep_losses=every_loss or rule.needs_losses)
    return terms.decision, groups


def _add_term(batch: MicroBatchTerms, group: TokenGroup, terms: FusedTerms) -> None:
    """Add the terms of a group: their gradient to `batch.grads`, and whatever the terms store."""
    sources: list[tuple[Tensor, Head]] = []
    if group.terms.distill and (teacher := terms.teacher) is not None:
        assert teacher.states.hidden_ND is not None
        sources.append((teacher.states.hidden_ND, teacher.head or batch.head))
    in_place, on_logits = terms.fused(group.terms), terms.on_logits(group.terms)
    heads = [batch.head, *(head for _, head in sources)]
    copies = len(heads) + (in_place is None)
    for chunk in chunks(len(group.index_M), batch.head, copies):
        index_C = group.index_M[chunk]
        products = [batch.student_product(index_C)]
        products += [head.product(states_ND[index_C]) for states_ND, head in sources]
        if in_place is not None:
            in_place(index_C, *products)
        else:
            for block in blocks(len(index_C), batch.head, copies):
                logits = [head.finish(product_CV[block]) for head, product_CV in zip(heads, products, strict=True)]
                grad_RV = on_logits(index_C[block], *logits)
                # The student's product is not needed any more, so its memory takes its gradient.
                products[0][block] = batch.head.product_gradient(grad_RV, logits[0])
        batch.grads.add(index_C, products[0])


def _add_terms_from_mean_embeddings(
    batch: MicroBatchTerms, rule: WeightRule, teacher: TeacherTerm, gain: Gain | None, every_loss: bool
) -> tuple[BatchDecision, list[TokenGroup]]:
    """Add both terms in one pass over the head: losses, then the decision, then both gradients from mean embeddings."""
    _check_mean_embeddings_suffice(batch, teacher, gain)
    groups: list[TokenGroup] = []
    trained_M: Tensor | slice = slice(None)
    if not rule.needs_losses:
        decision = rule.decide(batch.loss_N)
        groups = token_groups(decision, batch.backend)
        trained_M = _tokens_with_terms(groups, batch)
    hidden_MD, label_M = batch.hidden_ND[trained_M], batch.label_N[trained_M]
    observe = batch.observer_of_all() if isinstance(trained_M, slice) else batch.observer(trained_M)
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
    if batch.backend.is_accelerator:
        batch.forget_unweighted(decision.weights, keep_losses=every_loss or rule.needs_losses)
    return decision, groups


def _tokens_with_terms(groups: list[TokenGroup], batch: MicroBatchTerms) -> Tensor | slice:
    """Return the tokens that any term may train, in their order."""
    trained = [group.index_M for group in groups if group.terms.mle or group.terms.distill]
    if sum(map(len, trained)) == len(batch.label_N):
        return slice(None)
    return torch.cat(trained).sort().values


def _check_mean_embeddings_suffice(batch: MicroBatchTerms, teacher: TeacherTerm, gain: Gain | None) -> None:
    if (
        teacher.divergence != "forward_kl"
        or teacher.temperature != 1.0
        or teacher.top_k is not None
        or not batch.head.is_linear
        or batch.grads.head_is_trained
        or gain is not None
    ):
        raise ValueError(
            "mean embeddings give only forward KL at temperature 1 of a frozen linear head, and "
            f"cross-entropy without a gain (divergence {teacher.divergence}, temperature {teacher.temperature}, "
            f"top_k {teacher.top_k}, "
            f"linear head {batch.head.is_linear}, trainable head {batch.grads.head_is_trained}, "
            f"gain {gain is not None}); use hidden states"
        )
