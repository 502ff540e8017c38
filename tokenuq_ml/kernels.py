"""The one place where hidden states become logits, a chunk of rows at a time.

Cross-entropy, entropy, rank, Monte-Carlo statistics, and the training loss with its
gradient; never a `[B, T, V]` or `[N, V]` tensor. All reductions over the vocabulary are
float32 (float64 for float64 input); the matrix products run in the head's own dtype.
This file does not know which tokens are selected, nor where hidden states come from.

Shapes: N response tokens, C of them in a chunk, D hidden size, V vocabulary, K samples.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Budget for one chunk of float32 logits; the working set is some four times that."""


@dataclass(frozen=True)
class Head:
    """The output layer: `logits = cap(scale * (hidden @ weight.T + bias))`."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """`logits_CV` in float32 (float64 if the head is float64)."""
        weight_VD = self.weight_VD
        with torch.autocast(hidden_CD.device.type, enabled=False):
            logits_CV = hidden_CD.to(weight_VD.dtype) @ weight_VD.T
            logits_CV = logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()
            if self.bias_V is not None:
                logits_CV = logits_CV + self.bias_V
            if self.scale != 1.0:
                logits_CV = logits_CV * self.scale
            if self.softcap is not None:
                # Gemma-2, arXiv 2408.00118, section 2.
                logits_CV = self.softcap * torch.tanh(logits_CV / self.softcap)
        return logits_CV

    def backward(self, grad_CV: Tensor, logits_CV: Tensor) -> Tensor:
        """`grad_CD`, the gradient with respect to the hidden states of `logits`' output gradient."""
        if self.softcap is not None:
            grad_CV = grad_CV * (1 - (logits_CV / self.softcap) ** 2)
        if self.scale != 1.0:
            grad_CV = grad_CV * self.scale
        with torch.autocast(grad_CV.device.type, enabled=False):
            return grad_CV.to(self.weight_VD.dtype) @ self.weight_VD


def chunk_rows(vocabulary: int, copies: int = 1) -> int:
    """Rows a chunk, so that `copies` float32 matrices of logits fit the budget."""
    return max(1, CHUNK_BYTES // (4 * vocabulary * copies))


class TokenScores(NamedTuple):
    """Of N tokens: cross-entropy in nats, entropy in nats, and how many tokens are likelier."""

    loss_N: Tensor
    entropy_N: Tensor
    rank_N: Tensor


@torch.no_grad()
def token_scores(hidden_ND: Tensor, head: Head, label_N: Tensor) -> TokenScores:
    """Loss, entropy and rank of each label. One head product a token, no gradient."""
    chunks = []
    for rows in _chunks(len(label_N), head):
        logits_CV = head.logits(hidden_ND[rows])
        label_C1 = label_N[rows, None]
        rank_C = (logits_CV > logits_CV.gather(1, label_C1)).sum(1)
        logp_CV = torch.log_softmax(logits_CV, -1)
        entropy_C = -(logp_CV.exp() * logp_CV).sum(1)
        chunks.append((-logp_CV.gather(1, label_C1)[:, 0], entropy_C, rank_C.int()))
    return TokenScores(*_joined(chunks, hidden_ND, (None, None, torch.int32)))


@torch.no_grad()
def token_losses(hidden_ND: Tensor, head: Head, label_N: Tensor) -> Tensor:
    """`loss_N` in nats: what selection needs. One head product a token, no gradient."""
    chunks = []
    for rows in _chunks(len(label_N), head):
        logits_CV = head.logits(hidden_ND[rows])
        chunks.append((torch.logsumexp(logits_CV, -1) - logits_CV.gather(1, label_N[rows, None])[:, 0],))
    return _joined(chunks, hidden_ND, (None,))[0]


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
    chunks = []
    samples = hidden_KND.shape[0]
    for rows in _chunks(len(label_N), head, copies=2 * samples):
        logp_KCV = torch.stack([torch.log_softmax(head.logits(hidden_CD), -1) for hidden_CD in hidden_KND[:, rows]])
        mean_logp_CV = torch.logsumexp(logp_KCV, 0) - math.log(samples)
        expected_C = torch.zeros_like(mean_logp_CV[:, 0])
        bald_C = torch.zeros_like(expected_C)
        for logp_CV in logp_KCV:
            p_CV = logp_CV.exp()
            expected_C -= (p_CV * logp_CV).sum(1) / samples
            bald_C += (p_CV * (logp_CV - mean_logp_CV)).sum(1) / samples
        # A mean of divergences is never negative; rounding of equal samples may be.
        bald_C.clamp_(min=0)
        chunks.append((expected_C + bald_C, expected_C, bald_C, -mean_logp_CV.gather(1, label_N[rows, None])[:, 0]))
    return MonteCarloScores(*_joined(chunks, hidden_KND[0], (None,) * 4))


class TrainingLoss(NamedTuple):
    """`total` is differentiable in the hidden states; the others are for the record."""

    total: Tensor
    mle_N: Tensor
    divergence_N: Tensor


def training_loss(hidden_ND: Tensor, head: Head, label_N: Tensor, mle_weight_N: Tensor, distill_weight_N: Tensor,
                  teacher_ND: Tensor | None = None, temperature: float = 1.0) -> TrainingLoss:
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
    return TrainingLoss(*_TrainingLoss.apply(hidden_ND, head, label_N, mle_weight_N, distill_weight_N, teacher_ND,
                                             temperature))


class _TrainingLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, head, label_N, mle_weight_N, distill_weight_N, teacher_ND, temperature):
        grad_ND = torch.zeros_like(hidden_ND)
        accumulate = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        mle_N = torch.zeros(len(label_N), dtype=accumulate, device=hidden_ND.device)
        divergence_N = torch.zeros_like(mle_N)
        for kind in ("mle", "distill"):
            weight_N = (mle_weight_N if kind == "mle" else distill_weight_N).to(accumulate)
            trained_M = weight_N.nonzero()[:, 0]
            for rows in _chunks(len(trained_M), head, copies=1 if kind == "mle" else 2):
                index_C = trained_M[rows]
                logits_CV = head.logits(hidden_ND[index_C])
                if kind == "mle":
                    logp_CV = torch.log_softmax(logits_CV, -1)
                    label_C1 = label_N[index_C, None]
                    mle_N[index_C] = -logp_CV.gather(1, label_C1)[:, 0]
                    grad_CV = logp_CV.exp_()
                    grad_CV.scatter_add_(1, label_C1, torch.full_like(label_C1, -1.0, dtype=grad_CV.dtype))
                else:
                    logp_CV = torch.log_softmax(logits_CV / temperature, -1)
                    logq_CV = torch.log_softmax(head.logits(teacher_ND[index_C]) / temperature, -1)
                    q_CV = logq_CV.exp()
                    divergence_N[index_C] = (q_CV * (logq_CV - logp_CV)).sum(1)
                    grad_CV = (logp_CV.exp_() - q_CV) / temperature
                grad_CV *= weight_N[index_C, None]
                grad_ND.index_add_(0, index_C, head.backward(grad_CV, logits_CV).to(grad_ND.dtype))
        ctx.save_for_backward(grad_ND)
        total = (mle_weight_N.to(accumulate) * mle_N + distill_weight_N.to(accumulate) * divergence_N).sum()
        ctx.mark_non_differentiable(mle_N, divergence_N)
        return total, mle_N, divergence_N

    @staticmethod
    def backward(ctx, grad_total, *_):
        (grad_ND,) = ctx.saved_tensors
        return grad_total.to(grad_ND.dtype) * grad_ND, None, None, None, None, None, None


@torch.no_grad()
def divergence(teacher_ND: Tensor, other_ND: Tensor, head: Head) -> Tensor:
    """`KL_N(teacher || other)` in nats between the distributions of two sets of hidden states."""
    chunks = []
    for rows in _chunks(len(teacher_ND), head, copies=2):
        logq_CV = torch.log_softmax(head.logits(teacher_ND[rows]), -1)
        logp_CV = torch.log_softmax(head.logits(other_ND[rows]), -1)
        chunks.append(((logq_CV.exp() * (logq_CV - logp_CV)).sum(1),))
    return _joined(chunks, teacher_ND, (None,))[0]


def _chunks(rows: int, head: Head, copies: int = 1):
    size = chunk_rows(head.weight_VD.shape[0], copies)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _joined(chunks: list[tuple], like: Tensor, dtypes: tuple) -> list[Tensor]:
    """Concatenates columns of chunks; N = 0 gives empty tensors of the right type."""
    if chunks:
        return [torch.cat(column) for column in zip(*chunks, strict=True)]
    default = torch.float64 if like.dtype == torch.float64 else torch.float32
    return [torch.empty(0, dtype=dtype or default, device=like.device) for dtype in dtypes]
