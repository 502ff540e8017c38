"""Scores of response tokens: cross-entropy, entropy and rank, and BALD over Monte-Carlo samples.

Shapes: N response tokens, C of them in one product, R of those reduced at a time, D hidden size, V vocabulary,
K samples; M of the N tokens, with A likeliest tokens each.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tokenuq_ml.kernels import formulas
from tokenuq_ml.kernels.head import Head, blocks, chunks, joined


class TokenScores(NamedTuple):
    """Of N tokens: cross-entropy in nats, entropy in nats, and how many tokens are likelier."""

    loss_N: Tensor
    entropy_N: Tensor
    rank_N: Tensor
    choice_MA: Tensor | None = None
    """Of the M tokens that were asked for: ids of the A likeliest tokens, likeliest first."""
    probability_MA: Tensor | None = None
    """And their probabilities."""


@torch.no_grad()
def token_scores(
    hidden_ND: Tensor, head: Head, label_N: Tensor, choices: int = 0, wanted_N: Tensor | None = None
) -> TokenScores:
    """Loss, entropy and rank of each label; with `choices`, the likeliest tokens where `wanted_N` says so.

    One head product a token, no gradient.
    """
    rows, tops = [], []
    for chunk in chunks(len(label_N), head):
        product_CV, label_C = head.product(hidden_ND[chunk]), label_N[chunk]
        for block in blocks(len(label_C), head):
            z_RV, label_R = head.finish(product_CV[block]), label_C[block]
            rows.append(formulas.scores(z_RV, label_R))
            if choices and (asked_M := wanted_N[chunk][block].nonzero()[:, 0]).numel():
                tops.append(formulas.likeliest(z_RV[asked_M], label_R[asked_M], rows[-1][0][asked_M], choices))
    scores = TokenScores(*joined(rows, hidden_ND, (None, None, torch.int32)))
    return scores._replace(choice_MA=_rows(tops, 0), probability_MA=_rows(tops, 1)) if tops else scores


def _rows(parts: list[tuple[Tensor, ...]], column: int) -> Tensor:
    return torch.cat([part[column] for part in parts])


@torch.no_grad()
def token_losses(hidden_ND: Tensor, head: Head, label_N: Tensor) -> Tensor:
    """`loss_N` in nats: what selection needs. One head product a token, no gradient."""
    rows = []
    for chunk in chunks(len(label_N), head):
        product_CV, label_C = head.product(hidden_ND[chunk]), label_N[chunk]
        for block in blocks(len(label_C), head):
            z_RV = head.finish(product_CV[block])
            rows.append((formulas.label_loss(z_RV, label_C[block]),))
    return joined(rows, hidden_ND, (None,))[0]


class MonteCarloScores(NamedTuple):
    """Of N tokens, in nats; `predictive_entropy = expected_entropy + bald`."""

    predictive_entropy_N: Tensor
    expected_entropy_N: Tensor
    bald_N: Tensor
    bald_std_error_N: Tensor
    """Spread of `bald_N` over draws of the K samples; see `formulas.monte_carlo`."""
    mc_loss_N: Tensor


@torch.no_grad()
def monte_carlo_scores(hidden_KND: Tensor, head: Head, label_N: Tensor) -> MonteCarloScores:
    """BALD (Houlsby et al. 2011, arXiv 1112.5745) of K samples of each token's distribution.

    The formula is `formulas.monte_carlo`'s. One head product a token and sample; a chunk holds the K
    products of at least one token, and nothing else grows with K.
    """
    rows = []
    samples = hidden_KND.shape[0]
    for chunk in chunks(len(label_N), head, copies=samples):
        product_KCV, label_C = head.product(hidden_KND[:, chunk]), label_N[chunk]
        for block in blocks(len(label_C), head, copies=3):
            logits = lambda sample, block=block: head.finish(product_KCV[sample, block])  # noqa: E731, B023
            rows.append(formulas.monte_carlo(logits, samples, label_C[block]))
    return MonteCarloScores(*joined(rows, hidden_KND[0], (None,) * 5))
