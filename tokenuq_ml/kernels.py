"""The one place where hidden states become logits, a chunk of rows at a time.

Cross-entropy, entropy, rank, Monte-Carlo statistics, and the training loss with its
gradient; never a `[B, T, V]` or `[N, V]` tensor. All reductions over the vocabulary are
float32 (float64 for float64 input); the matrix products run in the head's own dtype.
This file does not know which tokens are selected, nor where hidden states come from.

Shapes: N response tokens, C of them in one product, R of those reduced at a time, D hidden
size, V vocabulary, K samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Budget for the logits of one matrix product, in the head's dtype: large enough to keep it busy."""
BLOCK_BYTES = 2**20
"""Budget for the float32 logits that are reduced at a time: they stay in the processor's cache, where the
several passes of a softmax cost a fraction of what they cost in memory."""


@dataclass(frozen=True)
class Head:
    """The output layer: `logits = cap(scale * (hidden @ weight.T + bias))`."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def product(self, hidden_CD: Tensor) -> Tensor:
        """`hidden @ weight.T` in the head's dtype, for any leading dimensions."""
        rows_CD = hidden_CD.reshape(-1, hidden_CD.shape[-1]).to(self.weight_VD.dtype)
        with torch.autocast(hidden_CD.device.type, enabled=False):
            # Always of two matrices: a batched product would copy the head for each of the batch.
            return (rows_CD @ self.weight_VD.T).unflatten(0, hidden_CD.shape[:-1])

    def finish(self, product_RV: Tensor) -> Tensor:
        """Logits from the product, in float32 (float64 for a float64 head); never the product itself."""
        logits_RV = product_RV.to(_accumulation(product_RV), copy=True)
        if self.bias_V is not None:
            logits_RV += self.bias_V
        if self.scale != 1.0:
            logits_RV *= self.scale
        if self.softcap is not None:
            # Gemma-2, arXiv 2408.00118, section 2.
            logits_RV = self.softcap * torch.tanh(logits_RV / self.softcap)
        return logits_RV

    def product_gradient(self, grad_RV: Tensor, logits_RV: Tensor) -> Tensor:
        """The gradient with respect to the product, from that with respect to the logits."""
        if self.softcap is not None:
            grad_RV = grad_RV * (1 - (logits_RV / self.softcap) ** 2)
        return grad_RV * self.scale if self.scale != 1.0 else grad_RV

    def hidden_gradient(self, grad_CV: Tensor) -> Tensor:
        """`grad_CD`, the gradient with respect to the hidden states, from that with respect to the product."""
        with torch.autocast(grad_CV.device.type, enabled=False):
            return grad_CV @ self.weight_VD


def _accumulation(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _chunks(rows: int, head: Head, copies: int = 1) -> Iterator[slice]:
    """Rows of one product, so that `copies` matrices of logits fit the budget."""
    size = max(1, CHUNK_BYTES // (head.weight_VD.element_size() * head.weight_VD.shape[0] * copies))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _blocks(rows: int, head: Head, copies: int = 1) -> Iterator[slice]:
    """Rows that are reduced together within a chunk of `rows`."""
    size = max(1, BLOCK_BYTES // (4 * head.weight_VD.shape[0] * copies))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


class TokenScores(NamedTuple):
    """Of N tokens: cross-entropy in nats, entropy in nats, and how many tokens are likelier."""

    loss_N: Tensor
    entropy_N: Tensor
    rank_N: Tensor


@torch.no_grad()
def token_scores(hidden_ND: Tensor, head: Head, label_N: Tensor) -> TokenScores:
    """Loss, entropy and rank of each label. One head product a token, no gradient."""
    rows = []
    for chunk in _chunks(len(label_N), head):
        product_CV, label_C = head.product(hidden_ND[chunk]), label_N[chunk]
        for block in _blocks(len(label_C), head):
            z_RV = head.finish(product_CV[block])
            # With the largest at 0 both terms of loss and entropy are positive: nothing cancels.
            z_RV -= z_RV.amax(1, keepdim=True)
            label_R1 = z_RV.gather(1, label_C[block, None])
            rank_R = (z_RV > label_R1).sum(1)
            e_RV = z_RV.exp()
            sum_R = e_RV.sum(1)
            entropy_R = sum_R.log() - e_RV.mul_(z_RV).sum(1) / sum_R
            rows.append((sum_R.log() - label_R1[:, 0], entropy_R, rank_R.int()))
    return TokenScores(*_joined(rows, hidden_ND, (None, None, torch.int32)))


@torch.no_grad()
def token_losses(hidden_ND: Tensor, head: Head, label_N: Tensor) -> Tensor:
    """`loss_N` in nats: what selection needs. One head product a token, no gradient."""
    rows = []
    for chunk in _chunks(len(label_N), head):
        product_CV, label_C = head.product(hidden_ND[chunk]), label_N[chunk]
        for block in _blocks(len(label_C), head):
            z_RV = head.finish(product_CV[block])
            rows.append((torch.logsumexp(z_RV, -1) - z_RV.gather(1, label_C[block, None])[:, 0],))
    return _joined(rows, hidden_ND, (None,))[0]


class MonteCarloScores(NamedTuple):
    """Of N tokens, in nats; `predictive_entropy = expected_entropy + bald`."""

    predictive_entropy_N: Tensor
    expected_entropy_N: Tensor
    bald_N: Tensor
    mc_loss_N: Tensor


@torch.no_grad()
def monte_carlo_scores(hidden_KND: Tensor, head: Head, label_N: Tensor) -> MonteCarloScores:
    """BALD (Houlsby et al. 2011, arXiv 1112.5745) of K samples of each token's distribution.

    Computed as `mean_k KL(p_k || mean_k p_k)`: the equal difference of entropies
    `H[mean p] - mean_k H[p_k]` loses its digits where the samples nearly agree.
    One head product a token and sample.
    """
    rows = []
    samples = hidden_KND.shape[0]
    for chunk in _chunks(len(label_N), head, copies=samples):
        product_KCV, label_C = head.product(hidden_KND[:, chunk]), label_N[chunk]
        for block in _blocks(len(label_C), head, copies=samples):
            logp_KRV = head.finish(product_KCV[:, block])
            logp_KRV -= logp_KRV.amax(-1, keepdim=True)
            logp_KRV -= logp_KRV.exp().sum(-1, keepdim=True).log()
            # From logp, not by dividing: the two must round alike, or divergences near 0 drown.
            p_KRV = logp_KRV.exp()
            # Where every sample's p rounds to 0, its terms do too, whatever the logarithm.
            mean_logp_RV = p_KRV.mean(0).clamp_(min=torch.finfo(p_KRV.dtype).tiny).log_()
            expected_R = -(p_KRV * logp_KRV).sum((0, 2)) / samples
            bald_R = p_KRV.mul_(logp_KRV.sub_(mean_logp_RV)).sum((0, 2)) / samples
            # A mean of divergences is never negative; rounding of equal samples may be.
            bald_R.clamp_(min=0)
            rows.append((expected_R + bald_R, expected_R, bald_R, -mean_logp_RV.gather(1, label_C[block, None])[:, 0]))
    return MonteCarloScores(*_joined(rows, hidden_KND[0], (None,) * 4))


class TrainingLoss(NamedTuple):
    """`total` is differentiable in the hidden states; the others are for the record."""

    total: Tensor
    mle_N: Tensor
    divergence_N: Tensor


def training_loss(
    hidden_ND: Tensor,
    head: Head,
    label_N: Tensor,
    mle_weight_N: Tensor,
    distill_weight_N: Tensor,
    teacher_ND: Tensor | None = None,
    temperature: float = 1.0,
) -> TrainingLoss:
    """`sum_n mle_weight_n * CE_n + distill_weight_n * KL(teacher_n || student_n)`, and its gradient.

    CE is at temperature 1. The divergence is the full forward KL in nats (not its
    cross-entropy form) between the distributions at `temperature`, with no factor of
    temperature squared; tokens of weight zero are reported as 0 and cost nothing. The gradient is
    computed on the way forward and only with respect to `hidden_ND`, since LoRA leaves
    the head frozen. Head products a token: 2 for CE (logits, gradient), 3 for KL (the teacher's too).

    Args:
        teacher_ND: the teacher's hidden states after its final norm, for the same head;
            may be None where no weight asks for it.
    """
    if head.weight_VD.requires_grad:
        raise NotImplementedError("the head is trainable: training_loss gives the gradient of the hidden states only")
    return TrainingLoss(
        *_TrainingLoss.apply(hidden_ND, head, label_N, mle_weight_N, distill_weight_N, teacher_ND, temperature)
    )


class _TrainingLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, head, label_N, mle_weight_N, distill_weight_N, teacher_ND, temperature):
        grad_ND = torch.zeros_like(hidden_ND)
        mle_N = torch.zeros(len(label_N), dtype=_accumulation(hidden_ND), device=hidden_ND.device)
        divergence_N = torch.zeros_like(mle_N)
        for distil, weight_N in ((False, mle_weight_N), (True, distill_weight_N)):
            weight_N = weight_N.to(mle_N.dtype)
            trained_M = weight_N.nonzero()[:, 0]
            for chunk in _chunks(len(trained_M), head, copies=2 + distil):
                index_C = trained_M[chunk]
                product_CV = head.product(hidden_ND[index_C])
                teacher_CV = head.product(teacher_ND[index_C]) if distil else None
                for block in _blocks(len(index_C), head, copies=2 + distil):
                    index_R = index_C[block]
                    logits_RV = head.finish(product_CV[block])
                    if distil:
                        teacher_RV = head.finish(teacher_CV[block])
                        divergence_N[index_R], grad_RV = _forward_kl(logits_RV, teacher_RV, temperature)
                    else:
                        mle_N[index_R], grad_RV = _cross_entropy(logits_RV, label_N[index_R])
                    grad_RV *= weight_N[index_R, None]
                    # The product is not needed any more: its place takes its gradient.
                    product_CV[block] = head.product_gradient(grad_RV, logits_RV)
                grad_ND.index_add_(0, index_C, head.hidden_gradient(product_CV).to(grad_ND.dtype))
        ctx.save_for_backward(grad_ND)
        total = (mle_weight_N.to(mle_N.dtype) * mle_N + distill_weight_N.to(mle_N.dtype) * divergence_N).sum()
        ctx.mark_non_differentiable(mle_N, divergence_N)
        return total, mle_N, divergence_N

    @staticmethod
    def backward(ctx, grad_total, *_):
        (grad_ND,) = ctx.saved_tensors
        return grad_total.to(grad_ND.dtype) * grad_ND, None, None, None, None, None, None


def _cross_entropy(logits_RV: Tensor, label_R: Tensor) -> tuple[Tensor, Tensor]:
    """`loss_R` and its gradient with respect to the logits."""
    logp_RV = torch.log_softmax(logits_RV, -1)
    loss_R = -logp_RV.gather(1, label_R[:, None])[:, 0]
    grad_RV = logp_RV.exp_()
    grad_RV.scatter_add_(1, label_R[:, None], -torch.ones_like(grad_RV[:, :1]))
    return loss_R, grad_RV


def _forward_kl(logits_RV: Tensor, teacher_RV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`KL_R(teacher || student)` at `temperature`, and its gradient with respect to the student's logits."""
    logp_RV = torch.log_softmax(logits_RV / temperature, -1)
    logq_RV = torch.log_softmax(teacher_RV / temperature, -1)
    q_RV = logq_RV.exp()
    divergence_R = (q_RV * logq_RV.sub_(logp_RV)).sum(1)
    return divergence_R, logp_RV.exp_().sub_(q_RV).div_(temperature)


@torch.no_grad()
def divergence(teacher_ND: Tensor, other_ND: Tensor, head: Head) -> Tensor:
    """`KL_N(teacher || other)` in nats between the distributions of two sets of hidden states."""
    rows = []
    for chunk in _chunks(len(teacher_ND), head, copies=2):
        teacher_CV, other_CV = head.product(teacher_ND[chunk]), head.product(other_ND[chunk])
        rows += [
            (_forward_kl(head.finish(other_CV[block]), head.finish(teacher_CV[block]), 1.0)[0],)
            for block in _blocks(len(teacher_CV), head, copies=3)
        ]
    return _joined(rows, teacher_ND, (None,))[0]


def _joined(rows: list[tuple], like: Tensor, dtypes: tuple) -> list[Tensor]:
    """Concatenates columns of rows; N = 0 gives empty tensors of the right type."""
    if rows:
        return [torch.cat(column) for column in zip(*rows, strict=True)]
    return [torch.empty(0, dtype=dtype or _accumulation(like), device=like.device) for dtype in dtypes]
