"""Formulas over one block of logits: scores, Monte-Carlo statistics, losses with their gradients.

Knows neither where logits come from nor what becomes of the results (`kernels.py`), so a block
fits the processor's cache. Every value is one a row, in nats; gradients are with respect to the
student's logits.

Shapes: R rows (tokens) of a block, V vocabulary, K samples.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def scores(logits_RV: Tensor, label_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, entropy, and how many tokens are likelier than the label.

    The logits are left shifted, with the largest of each row at 0.
    """
    # With the largest at 0 both terms of loss and entropy are positive: nothing cancels.
    z_RV = logits_RV.sub_(logits_RV.amax(1, keepdim=True))
    label_R1 = z_RV.gather(1, label_R[:, None])
    # Into numbers, not booleans, whose sum takes four times as long; counts below 2^24 are exact.
    scratch_RV = torch.gt(z_RV, label_R1, out=torch.empty_like(z_RV))
    rank_R = scratch_RV.sum(1)
    e_RV = torch.exp(z_RV, out=scratch_RV)
    sum_R = e_RV.sum(1)
    entropy_R = sum_R.log() - e_RV.mul_(z_RV).sum(1) / sum_R
    return sum_R.log() - label_R1[:, 0], entropy_R, rank_R.int()


def likeliest(logits_RV: Tensor, label_R: Tensor, loss_R: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ids and probabilities of the `count` likeliest tokens, `[R, count]`, likeliest first.

    From the label's loss, `p_k = p(label) exp(z_k - z_label)`: no softmax of its own, and logits may be shifted.
    """
    top = logits_RV.topk(min(count, logits_RV.shape[1]), 1)
    return top.indices, torch.exp(top.values - logits_RV.gather(1, label_R[:, None]) - loss_R[:, None])


def monte_carlo(logits: Callable[[int], Tensor], samples: int, label_R: Tensor) -> tuple[Tensor, ...]:
    """Predictive and expected entropy, BALD, BALD's standard error, and the loss of the mean distribution of K samples.

    The standard error is the jackknife's over samples, to second order in their differences. The influence of sample k
    on BALD is `KL(p_k || mean p) - BALD`, which gives `sqrt(sum_k (KL_k - BALD)^2 / (K (K-1)))`; leaving a sample out
    also moves the mean away from it, which for small differences is the factor K/(K-1) (as for a sample variance).

    `logits(k)` gives a fresh `[R, V]` of sample k and is asked twice for each, so that memory does not grow
    with K: once for `mean_k p_k`, once for `mean_k KL(p_k || mean_k p_k)`. The equal difference of entropies
    `H[mean p] - mean_k H[p_k]` loses its digits where the samples nearly agree.
    """
    lse, mean_RV, scratch_RV = [], None, None
    for sample in range(samples):
        z_RV = logits(sample)
        scratch_RV = torch.empty_like(z_RV) if scratch_RV is None else scratch_RV
        max_R1 = z_RV.amax(1, keepdim=True)
        lse.append(max_R1 + torch.exp(z_RV.sub_(max_R1), out=scratch_RV).sum(1, keepdim=True).log())
        # From log p, not by dividing: here and below it must round alike, or divergences near 0 drown.
        p_RV = z_RV.sub_(lse[-1] - max_R1).exp_()
        mean_RV = p_RV if mean_RV is None else mean_RV.add_(p_RV)
    # Where every sample's p rounds to 0, its terms do too, whatever the logarithm.
    log_mean_RV = mean_RV.div_(samples).clamp_(min=torch.finfo(mean_RV.dtype).tiny).log_()
    kl = []
    for sample in range(samples):
        logp_RV = logits(sample).sub_(lse[sample])
        torch.exp(logp_RV, out=scratch_RV)
        kl.append(scratch_RV.mul_(logp_RV.sub_(log_mean_RV)).sum(1))
    kl_KR = torch.stack(kl)
    std_error_R = kl_KR.std(0) * (samples**0.5 / (samples - 1))
    # A mean of divergences is never negative; rounding of equal samples may be.
    bald_R = kl_KR.mean(0).clamp_(min=0)
    predictive_R = -torch.exp(log_mean_RV, out=scratch_RV).mul_(log_mean_RV).sum(1)
    # The difference of the two, by definition; it is far from 0 where they are not both.
    expected_R = (predictive_R - bald_R).clamp_(min=0)
    return predictive_R, expected_R, bald_R, std_error_R, -log_mean_RV.gather(1, label_R[:, None])[:, 0]


def label_loss(logits_RV: Tensor, label_R: Tensor) -> Tensor:
    """`-log p(label)` alone."""
    return torch.logsumexp(logits_RV, -1) - logits_RV.gather(1, label_R[:, None])[:, 0]


def cross_entropy(logits_RV: Tensor, label_R: Tensor) -> tuple[Tensor, Tensor]:
    """`-log p(label)`; the gradient is `p - onehot(label)`."""
    logp_RV = torch.log_softmax(logits_RV, -1)
    loss_R = -logp_RV.gather(1, label_R[:, None])[:, 0]
    grad_RV = logp_RV.exp_()
    grad_RV.scatter_add_(1, label_R[:, None], -torch.ones_like(grad_RV[:, :1]))
    return loss_R, grad_RV


def probability_gain(logits_RV: Tensor, loss_R: Tensor) -> Tensor:
    """The label's probability (dynamic fine-tuning, Wu et al. 2025, arXiv 2508.05629)."""
    return torch.exp(-loss_R)


TOP_ENTROPY_TOKENS, TOP_ENTROPY_SCALE = 20, 3.0
"""Of EAFT; the entropy of 20 tokens is at most log 20, which is nearly 3."""


def top_entropy_gain(logits_RV: Tensor, loss_R: Tensor) -> Tensor:
    """Entropy among the 20 likeliest tokens, over 3 (entropy-adaptive fine-tuning, 2026, arXiv 2601.02151)."""
    top_RK = logits_RV.topk(min(TOP_ENTROPY_TOKENS, logits_RV.shape[1]), sorted=False).values
    logp_RK = torch.log_softmax(top_RK, -1)
    return -(logp_RK.exp() * logp_RK).sum(1) / TOP_ENTROPY_SCALE


def forward_kl(logp_RV: Tensor, logq_RV: Tensor) -> tuple[Tensor, Tensor]:
    """`KL(q || p) = sum q (log q - log p)`, the full divergence, not its cross-entropy form; gradient `p - q`."""
    q_RV = logq_RV.exp()
    value_R = (q_RV * (logq_RV - logp_RV)).sum(1)
    return value_R, logp_RV.exp() - q_RV


def reverse_kl(logp_RV: Tensor, logq_RV: Tensor) -> tuple[Tensor, Tensor]:
    """`KL(p || q) = sum p (log p - log q)` (MiniLLM, arXiv 2306.08543); gradient `p (log p - log q - KL)`."""
    p_RV = logp_RV.exp()
    ratio_RV = logp_RV - logq_RV
    value_R = (p_RV * ratio_RV).sum(1)
    return value_R, p_RV.mul_(ratio_RV.sub_(value_R[:, None]))


def jensen_shannon(logp_RV: Tensor, logq_RV: Tensor) -> tuple[Tensor, Tensor]:
    """`(KL(q || m) + KL(p || m)) / 2` with `m = (p + q) / 2` (GKD, arXiv 2306.13649, beta 1/2).

    Gradient `p (log p - log m - KL(p || m)) / 2`. At most log 2.
    """
    p_RV, q_RV = logp_RV.exp(), logq_RV.exp()
    logm_RV = torch.logaddexp(logp_RV, logq_RV) - math.log(2)
    ratio_RV = logp_RV - logm_RV
    student_R = (p_RV * ratio_RV).sum(1)
    teacher_R = (q_RV * (logq_RV - logm_RV)).sum(1)
    return (student_R + teacher_R) / 2, p_RV.mul_(ratio_RV.sub_(student_R[:, None])).div_(2)


DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jensen_shannon}


def divergence(name: str, logits_RV: Tensor, teacher_RV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The named divergence between softmaxes at `temperature`, with no factor of temperature squared."""
    logp_RV = torch.log_softmax(logits_RV / temperature, -1)
    logq_RV = torch.log_softmax(teacher_RV / temperature, -1)
    value_R, grad_RV = DIVERGENCES[name](logp_RV, logq_RV)
    return value_R, grad_RV.div_(temperature)
