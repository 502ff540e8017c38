"""Scores of response tokens: cross-entropy, entropy, rank, likeliest tokens, and BALD over Monte-Carlo samples.

Shapes: N response tokens, C of them in one product, R of those reduced at a time, D hidden size, V vocabulary,
K samples; M of the N tokens, with A likeliest tokens each.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tokenuq_ml.kernels import formulas
from tokenuq_ml.kernels.head import Head, blocks, chunks, concatenate_blocks
from tokenuq_ml.kernels.true_distributions import TrueDistributions


class TokenScores(NamedTuple):
    """Scores of N tokens."""

    loss_N: Tensor
    """Cross-entropy in nats."""
    entropy_N: Tensor
    """Entropy of the distribution in nats."""
    rank_N: Tensor
    """Number of tokens that are likelier than the label."""
    choice_MA: Tensor | None = None
    """Ids of the A likeliest tokens at the M positions that were asked for, likeliest first; None if M is 0."""
    probability_MA: Tensor | None = None
    """Probabilities of these tokens."""
    true_kl_N: Tensor | None = None
    """Divergence from the true distributions in nats, float64; NaN where they are not known, None if not asked for."""
    clean_kl_N: Tensor | None = None
    """The same from those without label noise."""


@torch.no_grad()
def token_scores(
    hidden_ND: Tensor,
    head: Head,
    label_N: Tensor,
    choices: int = 0,
    wanted_N: Tensor | None = None,
    truth: TrueDistributions | None = None,
) -> TokenScores:
    """Return loss, entropy and rank of each label, without a gradient. Costs one head product per token.

    Args:
        hidden_ND: states from which the tokens are predicted, after the final norm.
        head: the output head.
        label_N: ids of the tokens.
        choices: A, the number of likeliest tokens; 0: none.
        wanted_N: mask of the M positions whose likeliest tokens are wanted; required if `choices` is above 0.
        truth: the distributions that generated the tokens, for the divergence from them.
    """
    rows, tops, divergences = [], [], []
    for chunk in chunks(len(label_N), head):
        product_CV, label_C = head.product(hidden_ND[chunk]), label_N[chunk]
        for block in blocks(len(label_C), head):
            z_RV, label_R = head.finish(product_CV[block]), label_C[block]
            if truth is not None:
                divergences.append(truth.divergences(slice(chunk.start + block.start, chunk.start + block.stop), z_RV))
            rows.append(formulas.loss_entropy_rank(z_RV, label_R))
            if wanted_N is not None and choices and (asked_M := wanted_N[chunk][block].nonzero()[:, 0]).numel():
                tops.append(formulas.likeliest(z_RV[asked_M], label_R[asked_M], rows[-1][0][asked_M], choices))
    scores = TokenScores(*concatenate_blocks(rows, hidden_ND, (None, None, torch.int32)))
    if truth is not None:
        true_kl_N, clean_kl_N = concatenate_blocks(divergences, hidden_ND, (torch.float64, torch.float64))
        scores = scores._replace(true_kl_N=true_kl_N, clean_kl_N=clean_kl_N)
    if not tops:
        return scores
    choice_MA, probability_MA = concatenate_blocks(tops, hidden_ND, (torch.int64, None))
    return scores._replace(choice_MA=choice_MA, probability_MA=probability_MA)


@torch.no_grad()
def token_losses(
    hidden_ND: Tensor, head: Head, label_N: Tensor, observe: Callable[[slice, Tensor], None] | None = None
) -> Tensor:
    """Return `loss_N` in nats, without a gradient. Costs one head product per token.

    Args:
        hidden_ND: states from which the tokens are predicted, after the final norm.
        head: the output head.
        label_N: ids of the tokens.
        observe: `observe(rows, logits_RV)` is called for each block; `rows` are its tokens among the N.
    """
    rows = []
    for chunk in chunks(len(label_N), head):
        product_CV, label_C = head.product(hidden_ND[chunk]), label_N[chunk]
        for block in blocks(len(label_C), head):
            z_RV = head.finish(product_CV[block])
            rows.append((formulas.label_loss(z_RV, label_C[block]),))
            if observe is not None:
                observe(slice(chunk.start + block.start, chunk.start + block.stop), z_RV)
    return concatenate_blocks(rows, hidden_ND, (None,))[0]


class MonteCarloScores(NamedTuple):
    """Statistics of N tokens over K samples, in nats; `predictive_entropy = expected_entropy + bald`."""

    predictive_entropy_N: Tensor
    expected_entropy_N: Tensor
    bald_N: Tensor
    bald_std_error_N: Tensor
    """Standard error of `bald_N` over draws of the K samples; see `formulas.monte_carlo`."""
    mc_loss_N: Tensor
    """Cross-entropy under the mean distribution."""


@torch.no_grad()
def monte_carlo_scores(hidden_KND: Tensor, head: Head, label_N: Tensor) -> MonteCarloScores:
    """Return BALD (Houlsby et al. 2011, arXiv 1112.5745) and entropies from K samples of each token's distribution.

    The formula is in `formulas.monte_carlo`. Costs one head product per token and sample. A chunk holds the K products
    of at least one token; nothing else grows with K.

    Args:
        hidden_KND: states after the final norm, K samples of each.
        head: the output head.
        label_N: ids of the tokens.
    """
    return _scores_of_products(
        lambda chunk: head.product(hidden_KND[:, chunk]), hidden_KND[0], head, len(hidden_KND), label_N
    )


@torch.no_grad()
def sampled_head_scores(hidden_ND: Tensor, head: Head, weight_KVD: Tensor, label_N: Tensor) -> MonteCarloScores:
    """Return the same scores from K samples of the head's weight, and one hidden state of each token.

    Args:
        hidden_ND: states after the final norm.
        head: the output head, for everything but its weight.
        weight_KVD: K samples of its weight.
        label_N: ids of the tokens.
    """
    heads = [replace(head, weight_VD=weight_VD) for weight_VD in weight_KVD]

    def product(chunk: slice) -> Tensor:
        return torch.stack([one.product(hidden_ND[chunk]) for one in heads])

    return _scores_of_products(product, hidden_ND, head, len(heads), label_N)


def _scores_of_products(
    product: Callable[[slice], Tensor], like: Tensor, head: Head, samples: int, label_N: Tensor
) -> MonteCarloScores:
    """Return the scores; `product` returns the products `[K, C, V]` of a chunk of tokens."""
    rows = []
    for chunk in chunks(len(label_N), head, copies=samples):
        product_KCV, label_C = product(chunk), label_N[chunk]
        for block in blocks(len(label_C), head, copies=3):
            rows.append(
                formulas.monte_carlo(partial(_logits_of_sample, head, product_KCV[:, block]), samples, label_C[block])
            )
    return MonteCarloScores(*concatenate_blocks(rows, like, (None,) * 5))


def _logits_of_sample(head: Head, product_KRV: Tensor, sample: int) -> Tensor:
    return head.finish(product_KRV[sample])
