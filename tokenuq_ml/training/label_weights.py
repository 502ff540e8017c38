"""How much each token's cross-entropy and divergence count, one function per objective.

A function gets the objective's settings and the tokens of the optimiser batch. It returns the factor of the
cross-entropy, and the factor of the divergence, which the `weight` of `distill` multiplies. Factors have no gradient.

Notation: l is the student's cross-entropy with the label, p = exp(-l); q is the teacher's distribution, y the label;
N response tokens of an optimiser batch, E examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenuq_ml.training.tokens import Tokens

if TYPE_CHECKING:
    from tokenuq_ml.config import ObjectiveSpec

Shares = tuple[float | Tensor, float | Tensor]
"""Factors of the cross-entropy and of the divergence: one number, or `[N]`."""


def label(objective: ObjectiveSpec, tokens: Tokens) -> Shares:
    """Train by cross-entropy with the label, and in a sum by the divergence too.

    `dft`, `eaft`, `power` and `focal` have a further factor, which the kernel computes. Costs 2 head products; in a sum
    with a divergence 3 together.
    """
    return objective.setting("weight"), 1.0


def divergence_only(objective: ObjectiveSpec, tokens: Tokens) -> Shares:
    """Train by the divergence to the teacher. Costs 3 head products, or 2 from mean embeddings."""
    return 0.0, 1.0


def nothing(objective: ObjectiveSpec, tokens: Tokens) -> Shares:
    """Do not train the token. Costs no head product."""
    return 0.0, 0.0


def talr(objective: ObjectiveSpec, tokens: Tokens) -> Shares:
    """Weigh by `max(p^(1/t), floor)`; t is the median over the batch's examples of their mean loss.

    Token-adaptive loss reweighting (Lin et al. 2025, arXiv 2509.20758): hard tokens count less, and the scale of what
    is hard follows the model. Costs 3 head products: the losses of all tokens are needed first.
    """
    mean_E, _ = _example_means(tokens.loss_N, tokens.example_N)
    temperature = mean_E.median().clamp(min=1e-6) if len(mean_E) else 1.0
    weight_N = torch.exp(-tokens.loss_N / temperature).clamp(min=objective.setting("floor"))
    return objective.setting("weight") * weight_N, 1.0


def iw_sft(objective: ObjectiveSpec, tokens: Tokens) -> Shares:
    """Weigh each example by `min(r^power, clip)`, with r the geometric mean over its tokens of `p / p_base`.

    Importance-weighted fine-tuning (Qin, Springenberg 2025, arXiv 2507.12856): a tighter bound on the objective of
    reinforcement learning from filtered data. As in the authors' code, the ratio of sequences is taken per token, and
    the reference is the base model. Costs 3 head products: the losses of all tokens are needed first.
    """
    base_N = tokens.column("base_loss").to(tokens.loss_N)
    log_ratio_E, index_N = _example_means(base_N - tokens.loss_N, tokens.example_N)
    weight_E = torch.exp(objective.setting("power") * log_ratio_E).clamp(max=objective.setting("clip"))
    return objective.setting("weight") * weight_E[index_N], 1.0


def forget(objective: ObjectiveSpec, tokens: Tokens) -> Shares:
    """Make the label less likely: the weight of its cross-entropy is negative, from 0 at the first step to `-weight`.

    Forgetting of tokens that are judged misleading (Taheri et al. 2025, arXiv 2508.04329). The paper adapts the
    coefficient over training; here it grows linearly. Cross-entropy has no upper bound, so that a large weight diverges
    and training stops at a loss that is not finite. Costs 2 head products.
    """
    return -objective.setting("weight") * tokens.progress, 1.0


def epistemic_share(objective: ObjectiveSpec, tokens: Tokens) -> Shares:
    """Divide each token: cross-entropy by its share s of epistemic uncertainty, divergence to the teacher by 1 - s.

    `s = b / (b + c a)` with b the teacher's BALD, a its expected entropy, and `c = sum b / sum a` over the optimiser
    batch. A token of average proportions has s = 1/2, and s does not depend on the scale of BALD, which follows the
    dropout rate. Replaces the quantile of the paper by each token's own proportions: what the teacher does not know is
    learnt from the label, and where the label is one of several, the teacher's distribution is kept.

    Right if, in known truth, b / a is high where the teacher's divergence from the truth is large compared with the
    truth's entropy: near 0 for a free choice, high for a rare fact. Wrong if BALD of both has the same proportion.
    Costs 3 head products, or 2 from mean embeddings.
    """
    bald_N, aleatoric_N = (tokens.column(name).to(tokens.loss_N) for name in ("bald", "expected_entropy"))
    scaled_N = aleatoric_N * (bald_N.sum() / aleatoric_N.sum().clamp(min=1e-30))
    share_N = bald_N / (bald_N + scaled_N).clamp(min=1e-30)
    return objective.setting("weight") * share_N, 1.0 - share_N


def label_trust(objective: ObjectiveSpec, tokens: Tokens) -> Shares:
    """Divide each token: cross-entropy by the probability t that its label is right, divergence by 1 - t.

    `t = q(y) / (q(y) + noise)` is Bayes' rule for a label that is drawn from the teacher's distribution q, averaged
    over its dropout, or wrong; `noise` is the probability of a given wrong label. It drops only labels that a confident
    teacher finds nearly impossible, and replaces them by its distribution. A teacher that does not know spreads its
    probability, so that rare facts keep t near 1; losses and p^k (DFT, TALR, ProFit) take them for noise.

    Right if, in known truth, `mc_loss` separates wrong labels of facts from right ones of rare facts. Wrong if the
    teacher has memorised its wrong labels, so that their q(y) is as high. Costs 3 head products, or 2 from mean
    embeddings.
    """
    probability_N = torch.exp(-tokens.column("mc_loss").to(tokens.loss_N))
    trust_N = probability_N / (probability_N + objective.setting("noise")).clamp(min=1e-30)
    return objective.setting("weight") * trust_N, 1.0 - trust_N


def _example_means(value_N: Tensor, example_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the tokens of each example, `[E]`, and the index of each token's example in it."""
    present_E, index_N = torch.unique(example_N, return_inverse=True)
    total_E = torch.zeros(len(present_E), dtype=value_N.dtype, device=value_N.device).index_add_(0, index_N, value_N)
    return total_E / torch.bincount(index_N, minlength=len(present_E)).clamp(min=1), index_N
