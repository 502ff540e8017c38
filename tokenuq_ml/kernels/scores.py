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

from tokenuq_ml.kernels import formulas, fused
from tokenuq_ml.kernels.backend import backend_of
from tokenuq_ml.kernels.head import Head, blocks, chunks, concatenate_blocks
from tokenuq_ml.kernels.observers import Observer, observed_statistics
from tokenuq_ml.kernels.true_distributions import TrueDistributions
from tokenuq_ml.transfers import to_device


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
        wanted_N: mask of the M positions whose likeliest tokens are wanted, best on the CPU; required if `choices` is
            above 0.
        truth: the distributions that generated the tokens, for the divergence from them.
    """
    is_fused = backend_of(hidden_ND).is_fused
    rows, tops, divergences = [], [], []
    for chunk in chunks(len(label_N), head):
        product_CV, label_C = head.product(hidden_ND[chunk]), label_N[chunk]
        asked_C = wanted_N[chunk] if wanted_N is not None and choices else None
        if is_fused:
            found = fused.row_statistics(product_CV, head, label_C)
            rows.append((found.loss_C, found.entropy_C, found.rank_C))
            if truth is None and (asked_C is None or not asked_C.any()):
                continue
        for block in blocks(len(label_C), head):
            z_RV, label_R = head.finish(product_CV[block]), label_C[block]
            if truth is not None:
                divergences.append(truth.divergences(slice(chunk.start + block.start, chunk.start + block.stop), z_RV))
            if not is_fused:
                rows.append(formulas.loss_entropy_rank(z_RV, label_R))
            loss_R = rows[-1][0][block] if is_fused else rows[-1][0]
            if asked_C is not None and (asked_M := _indices(asked_C[block], z_RV.device)).numel():
                tops.append(formulas.likeliest(z_RV[asked_M], label_R[asked_M], loss_R[asked_M], choices))
    scores = TokenScores(*concatenate_blocks(rows, hidden_ND, (None, None, torch.int32)))
    if truth is not None:
        true_kl_N, clean_kl_N = concatenate_blocks(divergences, hidden_ND, (torch.float64, torch.float64))
        scores = scores._replace(true_kl_N=true_kl_N, clean_kl_N=clean_kl_N)
    if not tops:
        return scores
    choice_MA, probability_MA = concatenate_blocks(tops, hidden_ND, (torch.int64, None))
    return scores._replace(choice_MA=choice_MA, probability_MA=probability_MA)


def _indices(mask_R: Tensor, device: torch.device) -> Tensor:
    """Return the indices of a mask on a device; of a mask on the host, without waiting for the device."""
    return to_device(mask_R.nonzero()[:, 0], device)


@torch.no_grad()
def token_losses(hidden_ND: Tensor, head: Head, label_N: Tensor, observe: Observer | None = None) -> Tensor:
    """Return `loss_N` in nats, without a gradient. Costs one head product per token.

    Args:
        hidden_ND: states from which the tokens are predicted, after the final norm.
        head: the output head.
        label_N: ids of the tokens.
        observe: `observe(rows, logits_RV)` is called for each block; `rows` are its tokens among the N.
    """
    rows = []
    for chunk in chunks(len(label_N), head):
        product_CV = head.product(hidden_ND[chunk])
        rows.append((losses_of_product(product_CV, chunk, head, label_N[chunk], observe),))
    return concatenate_blocks(rows, hidden_ND, (None,))[0]


def losses_of_product(
    product_CV: Tensor, chunk: slice, head: Head, label_C: Tensor, observe: Observer | None = None
) -> Tensor:
    """Return `loss_C` in nats, given the product with the head.

    Args:
        product_CV: product with the head.
        chunk: which of the N tokens its rows are, for `observe`.
        head: the output head.
        label_C: ids of the tokens.
        observe: is called for each block, as by `token_losses`.
    """
    if backend_of(product_CV).is_fused:
        return observed_statistics(product_CV, chunk, head, label_C, observe).loss_C
    losses = []
    for block in blocks(len(label_C), head):
        z_RV = head.finish(product_CV[block])
        losses.append(formulas.label_loss(z_RV, label_C[block]))
        if observe is not None:
            observe(slice(chunk.start + block.start, chunk.start + block.stop), z_RV)
    return torch.cat(losses)


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
    rows: list[tuple[Tensor, ...]] = []
    is_fused = backend_of(like).is_fused
    for chunk in chunks(len(label_N), head, copies=samples):
        product_KCV, label_C = product(chunk), label_N[chunk]
        if is_fused:
            rows.append(fused.monte_carlo(product_KCV, head, label_C))
            continue
        for block in blocks(len(label_C), head, copies=3):
            rows.append(
                formulas.monte_carlo(partial(_logits_of_sample, head, product_KCV[:, block]), samples, label_C[block])
            )
    return MonteCarloScores(*concatenate_blocks(rows, like, (None,) * 5))


def _logits_of_sample(head: Head, product_KRV: Tensor, sample: int) -> Tensor:
    return head.finish(product_KRV[sample])
