"""The training loss of the response tokens of a micro-batch, and its gradient, computed on the way forward.

Shapes: N response tokens, C of them in one product, R of those reduced at a time, D hidden size, V vocabulary;
M of the N tokens are trained.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tokenuq_ml.kernels import formulas
from tokenuq_ml.kernels.gradients import Gradients
from tokenuq_ml.kernels.head import Head, accumulation, blocks, chunks
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings, row_dot
from tokenuq_ml.kernels.scores import token_losses


class Weights(NamedTuple):
    """What each token's cross-entropy and divergence count in the sum of `training_loss`."""

    mle_N: Tensor
    distill_N: Tensor


class TrainingLoss(NamedTuple):
    """`total` is differentiable; the others are for the record, 0 for tokens that were not asked for them."""

    total: Tensor
    loss_N: Tensor
    """Cross-entropy: of every token where selection or the caller asked for it, else of those with an `mle` weight."""
    divergence_N: Tensor
    weights: Weights


def training_loss(
    hidden_ND: Tensor,
    head: Head,
    label_N: Tensor,
    weights: Weights | Callable[[Tensor], Weights],
    teacher: TeacherStates | None = None,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    teacher_head: Head | None = None,
    gain: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    every_loss: bool = False,
) -> TrainingLoss:
    """`sum_n mle_n * gain_n * CE_n + distill_n * divergence(teacher_n, student_n)`, and its gradient.

    CE is at temperature 1; divergences are in `formulas.py`, in nats. The gradient is computed
    on the way forward: with respect to the hidden states, and to the head's weight and bias if they
    require it. Head products a token:

    - CE: 2 (logits, gradient).
    - divergence from hidden states: 3 (the teacher's logits too); from mean embeddings: 2.
    - weights that follow from the losses: 1 more for every token, except with mean embeddings,
      where 2 suffice for everything (and are spent on every token).
    - a trainable head: 1 more for each token that is trained.

    Args:
        weights: or a function that gives them from `loss_N`, for selection by loss.
        teacher: None where no weight asks for it; mean embeddings only with forward KL, temperature 1,
            no soft-capping and a frozen head (they belong to the head that made them).
        teacher_head: the head of the teacher's hidden states, where it is not `head`: a trainable head
            changes, its teacher's does not.
        gain: `gain(logits_RV, loss_R, index_R)` gives factors of R tokens' cross-entropy that follow from its own
            logits, with no gradient of their own and no further product; not with mean embeddings. The weights
            that are returned include it. Default: 1.
        every_loss: the cross-entropy of all tokens is wanted, for the record: 1 product more for those that are
            not trained, none for the others.
    """
    grads = Gradients(hidden_ND, head)
    linear = teacher is not None and teacher.mean_ND is not None
    odd = divergence != "forward_kl" or temperature != 1.0 or head.softcap is not None or grads.of_head
    if linear and (odd or gain is not None):
        raise ValueError(
            "mean embeddings give forward KL at temperature 1 of a frozen head without soft-capping, and cross-entropy "
            f"without a gain, and nothing else (divergence {divergence}, temperature {temperature}, softcap "
            f"{head.softcap})"
        )
    known = callable(weights)
    with torch.no_grad():
        loss_N = torch.zeros(len(label_N), dtype=accumulation(hidden_ND), device=hidden_ND.device)
        divergence_N = torch.zeros_like(loss_N)
        if linear:
            weights = _from_means(grads, label_N, weights, teacher, loss_N, divergence_N)
        else:
            if callable(weights):
                loss_N.copy_(token_losses(hidden_ND.detach(), head, label_N))
                weights = weights(loss_N)
            gain_N = torch.ones_like(loss_N)

            def cross_entropy(z_RV: Tensor, at_R: Tensor) -> tuple[Tensor, Tensor]:
                loss_R, grad_RV = formulas.cross_entropy(z_RV, label_N[at_R])
                if gain is not None:
                    gain_N[at_R] = gain(z_RV, loss_R, at_R)
                    grad_RV *= gain_N[at_R, None]
                return loss_R, grad_RV

            _from_logits(grads, weights.mle_N, loss_N, cross_entropy)

            def distance(z_RV: Tensor, at_R: Tensor, teacher_RV: Tensor) -> tuple[Tensor, Tensor]:
                if every_loss and not known:
                    loss_N[at_R] = formulas.label_loss(z_RV, label_N[at_R])
                return formulas.divergence(divergence, z_RV, teacher_RV, temperature)

            if teacher is not None:
                _from_logits(grads, weights.distill_N, divergence_N, distance, teacher.hidden_ND, teacher_head or head)
            elif weights.distill_N.any():
                raise ValueError("tokens are to be distilled, and there is no teacher")
            if gain is not None:
                weights = weights._replace(mle_N=weights.mle_N.to(loss_N.dtype) * gain_N)
        if every_loss and not known:
            untrained_M = ((weights.mle_N == 0) & (weights.distill_N == 0)).nonzero()[:, 0]
            loss_N[untrained_M] = token_losses(hidden_ND.detach()[untrained_M], head, label_N[untrained_M])
        total = (weights.mle_N.to(loss_N.dtype) * loss_N + weights.distill_N.to(loss_N.dtype) * divergence_N).sum()
    return TrainingLoss(grads.attach(total), loss_N, divergence_N, weights)


def _from_logits(
    grads: Gradients,
    weight_N: Tensor,
    out_N: Tensor,
    function: Callable[..., tuple[Tensor, Tensor]],
    teacher_ND: Tensor | None = None,
    teacher_head: Head | None = None,
) -> None:
    """One term of the objective for the tokens of weight above 0: values into `out_N`, gradients into `grads`.

    `function(logits_RV, index_R[, teacher_RV])` gives both of a block.
    """
    head, trained_M = grads.head, weight_N.nonzero()[:, 0]
    copies = 2 if teacher_head is None else 3
    for chunk in chunks(len(trained_M), head, copies):
        index_C = trained_M[chunk]
        product_CV = head.product(grads.hidden_ND.detach()[index_C])
        teacher_CV = None if teacher_head is None else teacher_head.product(teacher_ND[index_C])
        for block in blocks(len(index_C), head, copies):
            index_R = index_C[block]
            logits_RV = head.finish(product_CV[block])
            teacher = () if teacher_head is None else (teacher_head.finish(teacher_CV[block]),)
            out_N[index_R], grad_RV = function(logits_RV, index_R, *teacher)
            grad_RV *= weight_N[index_R, None].to(grad_RV.dtype)
            # The product is not needed any more: its place takes its gradient.
            product_CV[block] = head.product_gradient(grad_RV, logits_RV)
        grads.add(index_C, product_CV)


def _from_means(
    grads: Gradients,
    label_N: Tensor,
    weights: Weights | Callable[[Tensor], Weights],
    teacher: TeacherStates,
    loss_N: Tensor,
    divergence_N: Tensor,
) -> Weights:
    """The whole objective in one pass over the head: losses, then weights, then both gradients from `mu`."""
    head, hidden_ND = grads.head, grads.hidden_ND.detach()
    if callable(weights):
        trained_M = torch.arange(len(label_N), device=hidden_ND.device)
    else:
        trained_M = (weights.mle_N + weights.distill_N).nonzero()[:, 0]
    hidden_MD, label_M = hidden_ND[trained_M], label_N[trained_M]
    student = mean_embeddings(hidden_MD, head, label_M)
    loss_N[trained_M] = student.loss_N
    if callable(weights):
        weights = weights(loss_N)
    mle_M, distill_M = (weight_N[trained_M].to(loss_N.dtype) for weight_N in weights)
    mean_MD, distils_M = teacher.mean_ND[trained_M], distill_M > 0
    # Rounding may leave less than 0. Clamped, the mean over tokens would be too high: in bfloat16 nearly twice.
    divergence_M = student.lse_N - row_dot(hidden_MD, mean_MD) - teacher.offset_N[trained_M]
    divergence_N[trained_M] = torch.where(distils_M, divergence_M, 0.0)
    grad_MD = student.mean_ND.to(loss_N.dtype) * (mle_M + distill_M)[:, None]
    grad_MD -= head.weight_VD[label_M] * (head.scale * mle_M)[:, None]
    grad_MD -= mean_MD * distill_M[:, None]
    grads.grad_ND[trained_M] = grad_MD.to(grads.grad_ND.dtype)
    return weights
