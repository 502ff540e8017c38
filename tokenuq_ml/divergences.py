"""Losses of tokens from their logits, each with its gradient: formulas for one block of rows.

Knows neither where logits come from nor what becomes of the gradients (`kernels.py`), so a
block fits the processor's cache. Every function gives a value a row, in nats, and the gradient
of that value with respect to the student's logits.

Shapes: R rows (tokens) of a block, V vocabulary.
"""

import math

import torch
from torch import Tensor


def cross_entropy(logits_RV: Tensor, label_R: Tensor) -> tuple[Tensor, Tensor]:
    """`-log p(label)`; the gradient is `p - onehot(label)`."""
    logp_RV = torch.log_softmax(logits_RV, -1)
    loss_R = -logp_RV.gather(1, label_R[:, None])[:, 0]
    grad_RV = logp_RV.exp_()
    grad_RV.scatter_add_(1, label_R[:, None], -torch.ones_like(grad_RV[:, :1]))
    return loss_R, grad_RV


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
