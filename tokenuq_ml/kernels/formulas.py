"""Formulas over one block of logits: scores, Monte-Carlo statistics, losses with their gradients.

A block is small enough for the processor's cache; `head.py` cuts hidden states into blocks. Every value is one per
row, in nats. Gradients are with respect to the student's logits.

Shapes: R rows (tokens) of a block, V vocabulary, K samples.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def loss_entropy_rank(logits_RV: Tensor, label_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return cross-entropy, entropy, and the number of tokens that are likelier than the label.

    Shifts `logits_RV` in place, so that the largest of each row is 0.
    """
    # With the largest at 0, both terms of loss and entropy are positive, so nothing cancels.
    z_RV = logits_RV.sub_(logits_RV.amax(1, keepdim=True))
    label_R1 = z_RV.gather(1, label_R[:, None])
    # Compare into floats: summing booleans takes four times as long, and counts below 2^24 are exact.
    scratch_RV = torch.gt(z_RV, label_R1, out=torch.empty_like(z_RV))
    rank_R = scratch_RV.sum(1)
    e_RV = torch.exp(z_RV, out=scratch_RV)
    sum_R = e_RV.sum(1)
    entropy_R = sum_R.log() - e_RV.mul_(z_RV).sum(1) / sum_R
    return sum_R.log() - label_R1[:, 0], entropy_R, rank_R.int()


def likeliest(logits_RV: Tensor, label_R: Tensor, loss_R: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return ids and probabilities of the `count` likeliest tokens, `[R, count]`, likeliest first.

    Uses `p_k = p(label) exp(z_k - z_label)` with the label's loss, which saves a softmax. The logits may be shifted.
    """
    top = logits_RV.topk(min(count, logits_RV.shape[1]), 1)
    return top.indices, torch.exp(top.values - logits_RV.gather(1, label_R[:, None]) - loss_R[:, None])


def monte_carlo(logits: Callable[[int], Tensor], samples: int, label_R: Tensor) -> tuple[Tensor, ...]:
    """Return statistics of K samples of each token's distribution.

    BALD is `mean_k KL(p_k || mean_k p_k)`. The difference of entropies `H[mean p] - mean_k H[p_k]` is the same number,
    but loses its digits when the samples nearly agree.

    The standard error is the jackknife's over samples, to second order in their differences. The influence of sample k
    on BALD is `KL(p_k || mean p) - BALD`, which gives `sqrt(sum_k (KL_k - BALD)^2 / (K (K-1)))`; leaving a sample out
    also moves the mean away from it, which for small differences is the factor K/(K-1) (as for a sample variance).

    Args:
        logits: `logits(k)` returns a new `[R, V]` of sample k. It is called twice per sample, for `mean_k p_k` and for
            the divergences, so that memory does not grow with K.
        samples: K, at least 2.
        label_R: ids of the tokens.

    Returns:
        Predictive entropy, expected entropy, BALD, BALD's standard error, and the loss of the mean distribution.
    """
    log_mean_RV, lse_KR1, scratch_RV = _log_mean_probability(logits, samples)
    kl = []
    for sample in range(samples):
        logp_RV = logits(sample).sub_(lse_KR1[sample])
        torch.exp(logp_RV, out=scratch_RV)
        kl.append(scratch_RV.mul_(logp_RV.sub_(log_mean_RV)).sum(1))
    kl_KR = torch.stack(kl)
    std_error_R = kl_KR.std(0) * (samples**0.5 / (samples - 1))
    # A mean of divergences is not negative, but rounding can make that of equal samples so.
    bald_R = kl_KR.mean(0).clamp_(min=0)
    predictive_R = -torch.exp(log_mean_RV, out=scratch_RV).mul_(log_mean_RV).sum(1)
    # By definition the difference. It cancels only where both entropies are near 0.
    expected_R = (predictive_R - bald_R).clamp_(min=0)
    return predictive_R, expected_R, bald_R, std_error_R, -log_mean_RV.gather(1, label_R[:, None])[:, 0]


def _log_mean_probability(logits: Callable[[int], Tensor], samples: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return `log mean_k p_k`, each sample's log-sum-exp `[R, 1]`, and a tensor of the logits' shape to reuse."""
    lse: list[Tensor] = []
    mean_RV = scratch_RV = torch.empty(0)
    for sample in range(samples):
        z_RV = logits(sample)
        scratch_RV = torch.empty_like(z_RV) if sample == 0 else scratch_RV
        max_R1 = z_RV.amax(1, keepdim=True)
        lse.append(max_R1 + torch.exp(z_RV.sub_(max_R1), out=scratch_RV).sum(1, keepdim=True).log())
        # From log p, not by dividing: p must round here as it does for the divergences, or rounding hides those near 0.
        p_RV = z_RV.sub_(lse[-1] - max_R1).exp_()
        mean_RV = p_RV if sample == 0 else mean_RV.add_(p_RV)
    # If every sample's p rounds to 0, so do its terms; the clamp only keeps the logarithm finite.
    return mean_RV.div_(samples).clamp_(min=torch.finfo(mean_RV.dtype).tiny).log_(), lse, scratch_RV


def label_loss(logits_RV: Tensor, label_R: Tensor) -> Tensor:
    """Return `-log p(label)`, without a gradient."""
    return torch.logsumexp(logits_RV, -1) - logits_RV.gather(1, label_R[:, None])[:, 0]


def cross_entropy(logits_RV: Tensor, label_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return `-log p(label)` and its gradient, `p - onehot(label)`."""
    logp_RV = torch.log_softmax(logits_RV, -1)
    loss_R = -logp_RV.gather(1, label_R[:, None])[:, 0]
    grad_RV = logp_RV.exp_()
    grad_RV.scatter_add_(1, label_R[:, None], torch.full_like(grad_RV[:, :1], -1))
    return loss_R, grad_RV


def entropy(logits_RV: Tensor) -> Tensor:
    """Return the entropy, without a gradient."""
    logp_RV = torch.log_softmax(logits_RV, -1)
    return -logp_RV.exp().mul_(logp_RV).sum(1)


def entropy_from_gradient(loss_R: Tensor, grad_RV: Tensor, logits_RV: Tensor) -> Tensor:
    """Return the entropy, given the cross-entropy and its gradient.

    With the gradient `g = p - onehot(label)`, `H = lse - p . z = (loss + z_label) - (g . z + z_label) = loss - g . z`.
    """
    return loss_R - (grad_RV * logits_RV).sum(1)


def forward_kl(logp_RV: Tensor, logq_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Return `KL(q || p) = sum q (log q - log p)` and its gradient, `p - q`.

    This is the full divergence, not its cross-entropy form: it is 0 for equal distributions.
    """
    q_RV = logq_RV.exp()
    value_R = (q_RV * (logq_RV - logp_RV)).sum(1)
    return value_R, logp_RV.exp() - q_RV


def reverse_kl(logp_RV: Tensor, logq_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Return `KL(p || q) = sum p (log p - log q)` and its gradient, `p (log p - log q - KL)`.

    Used for distillation by MiniLLM (arXiv 2306.08543).
    """
    p_RV = logp_RV.exp()
    ratio_RV = logp_RV - logq_RV
    value_R = (p_RV * ratio_RV).sum(1)
    return value_R, p_RV.mul_(ratio_RV.sub_(value_R[:, None]))


def jensen_shannon(logp_RV: Tensor, logq_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Return `(KL(q || m) + KL(p || m)) / 2` with `m = (p + q) / 2`, and its gradient.

    The gradient is `p (log p - log m - KL(p || m)) / 2`. The divergence is at most log 2. This is GKD's (arXiv
    2306.13649) with beta 1/2.
    """
    p_RV, q_RV = logp_RV.exp(), logq_RV.exp()
    logm_RV = torch.logaddexp(logp_RV, logq_RV) - math.log(2)
    ratio_RV = logp_RV - logm_RV
    student_R = (p_RV * ratio_RV).sum(1)
    teacher_R = (q_RV * (logq_RV - logm_RV)).sum(1)
    return (student_R + teacher_R) / 2, p_RV.mul_(ratio_RV.sub_(student_R[:, None])).div_(2)


FLOOR = -1e6
"""The logit of tokens that are left out, when the largest is 0. `exp(FLOOR / T)` is 0 for temperatures below 1000."""

DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jensen_shannon}
"""Divergences between the student's distribution p and the teacher's q, from their logarithms."""


def divergence(
    name: str, logits_RV: Tensor, teacher_RV: Tensor, temperature: float, top_k: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return a divergence between the softmaxes at `temperature`, and its gradient.

    Args:
        name: a key of `DIVERGENCES`.
        logits_RV: the student's.
        teacher_RV: the teacher's.
        temperature: divides both logits. The divergence is not multiplied by its square.
        top_k: keep only that many of the teacher's likeliest tokens, renormalised. This is what a cache of the top K
            gives: the expected gradient differs from that of all tokens, and pushes every other token's probability
            to 0 (Anshumann et al. 2025, arXiv 2503.16870). Not with `reverse_kl`, which is infinite then.
    """
    if top_k is not None and top_k < teacher_RV.shape[1]:
        kept = teacher_RV.topk(top_k, 1)
        # A finite floor, whose probability is 0 in every dtype: infinities would give 0 * inf in the divergences.
        teacher_RV = torch.full_like(teacher_RV, FLOOR).scatter_(1, kept.indices, kept.values - kept.values[:, :1])
    # At temperature 1 the divisions change no bit, and each one is a pass over the block.
    if temperature == 1:
        return DIVERGENCES[name](torch.log_softmax(logits_RV, -1), torch.log_softmax(teacher_RV, -1))
    logp_RV = torch.log_softmax(logits_RV / temperature, -1)
    logq_RV = torch.log_softmax(teacher_RV / temperature, -1)
    value_R, grad_RV = DIVERGENCES[name](logp_RV, logq_RV)
    return value_R, grad_RV.div_(temperature)
