"""Divergence of a model from the distributions that generated its data, where these are known.

Sums are over the ids that are possible, in float64: nothing is sampled, and small divergences keep their digits.

Shapes: N response tokens, R of those reduced at a time, S ids that are possible (the most of any token), V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tokenuq_ml.transfers import to_device

Rows = Tensor | slice
"""Which of the N tokens a block holds."""


class TrueDistributions(NamedTuple):
    """The distribution that generated each of N tokens; ids after a token's last one have probability 0."""

    support_NS: Tensor
    """int64: ids of the tokens that are possible."""
    probability_NS: Tensor
    """float64: their probabilities, label noise included."""
    clean_NS: Tensor
    """float64: their probabilities without label noise."""
    is_known_N: Tensor
    """Whether the token's distribution is known; its row is all 0 if not."""

    def to(self, device: str | torch.device) -> "TrueDistributions":
        """Return the distributions on a device."""
        return TrueDistributions(*(to_device(column, device) for column in self))

    def divergences(self, rows: Rows, logits_RV: Tensor) -> tuple[Tensor, Tensor]:
        """Return `KL(truth || model)` of a block with label noise and without, in nats; NaN where it is not known."""
        log_RS = support_log_probability(logits_RV, self.support_NS[rows])
        kl = (kl_from_support(part_NS[rows], log_RS) for part_NS in (self.probability_NS, self.clean_NS))
        is_known_R = self.is_known_N[rows]
        noisy_R, clean_R = (kl_R.masked_fill(~is_known_R, float("nan")) for kl_R in kl)
        return noisy_R, clean_R


def support_log_probability(logits_RV: Tensor, support_RS: Tensor) -> Tensor:
    """Return the model's log-probabilities of some ids, in float64."""
    z_RV = logits_RV.double()
    return z_RV.gather(1, support_RS) - torch.logsumexp(z_RV, 1, keepdim=True)


def kl_from_support(probability_RS: Tensor, log_RS: Tensor) -> Tensor:
    """Return `KL(p || q) = sum_s p_s (log p_s - log q_s)` over the ids at which p may be positive.

    Args:
        probability_RS: p; its rows sum to 1.
        log_RS: log q of the same ids; q may have more ids, which add nothing.
    """
    # Rounding may leave less than 0 where the distributions agree.
    return (torch.special.xlogy(probability_RS, probability_RS) - probability_RS * log_RS).sum(1).clamp_(min=0)
