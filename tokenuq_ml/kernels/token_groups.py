"""Which of the N tokens get which terms of the training loss, as indices whose number the host knows.

A product needs the number of its rows on the host. `nonzero` of a mask gives it, and on an accelerator waits for the
device. There, groups are found without waiting where the number of selected tokens is known: a quantile selects
`ceil(q * N)` tokens, whatever their losses are, and a selection that was decided before training is known by its mask.
A stable sort of the mask then gives the indices, and which terms a group may have follows from the objectives. Tokens
of a group whose weight is 0 (by the data's weights, say) are computed all the same, and count 0.

Where the number is not known (a threshold of the losses, selection of examples, a user's function), four counts are
copied to the host, and it waits for them. That costs the device the time of some launches, about a fiftieth of one head
product of 4,096 tokens. To compute every token under weights, without waiting, would cost a further product for each
token that a term leaves out: of a token that is selected the teacher's logits, of one that is not trained all three.

Shapes: N response tokens, M of the N.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tokenuq_ml.kernels.backend import Backend
from tokenuq_ml.kernels.weight_rule import BatchDecision, KnownTerms, Terms
from tokenuq_ml.transfers import HostCopy


class TokenGroup(NamedTuple):
    """Tokens that get the same terms."""

    index_M: Tensor
    """int64: which of the N tokens."""
    terms: Terms


_ORDER = (Terms(True, False), Terms(False, True), Terms(True, True), Terms(False, False))


def token_groups(decision: BatchDecision, backend: Backend) -> list[TokenGroup]:
    """Return the groups of the N tokens: those with cross-entropy, divergence, both and neither, in this order.

    Args:
        decision: weights of the tokens, and what is known of them.
        backend: says whether the host may wait for the device.
    """
    if not backend.is_accelerator:
        return _by_nonzero(decision)
    known = decision.known
    if known is not None and known.of_selected == known.of_rest:
        return [TokenGroup(torch.arange(len(decision.selected_N), device=decision.selected_N.device), known.of_rest)]
    if known is not None and known.selected is not None:
        return _by_known_count(decision.selected_N, known.selected, known)
    return _by_counting(decision)


def _by_nonzero(decision: BatchDecision) -> list[TokenGroup]:
    is_mle_N, is_distilled_N = (weight_N != 0 for weight_N in decision.weights)
    masks = [is_mle_N & ~is_distilled_N, is_distilled_N & ~is_mle_N, is_mle_N & is_distilled_N]
    masks.append(~(is_mle_N | is_distilled_N))
    return [TokenGroup(mask_N.nonzero()[:, 0], terms) for mask_N, terms in zip(masks, _ORDER, strict=True)]


def _by_known_count(selected_N: Tensor, count: int, known: KnownTerms) -> list[TokenGroup]:
    # As numbers: a sort of Booleans is not implemented on every device.
    order_N = torch.argsort((~selected_N).int(), stable=True)
    groups = [TokenGroup(order_N[:count], known.of_selected), TokenGroup(order_N[count:], known.of_rest)]
    return sorted(groups, key=lambda group: _ORDER.index(group.terms))


def _by_counting(decision: BatchDecision) -> list[TokenGroup]:
    is_mle_N, is_distilled_N = (weight_N != 0 for weight_N in decision.weights)
    # 0: cross-entropy, 1: divergence, 2: both, 3: neither.
    kind_N = torch.where(is_mle_N, torch.where(is_distilled_N, 2, 0), torch.where(is_distilled_N, 1, 3)).int()
    order_N = torch.argsort(kind_N, stable=True)
    kinds_4 = torch.arange(len(_ORDER), device=kind_N.device, dtype=torch.int32)
    (counts_4,) = HostCopy((kind_N[:, None] == kinds_4).sum(0)).wait()
    parts = order_N.split(counts_4.tolist())
    return [TokenGroup(index_M, terms) for index_M, terms in zip(parts, _ORDER, strict=True)]
