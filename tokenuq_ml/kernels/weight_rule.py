"""What the training loss asks of selection: which tokens are selected, and how much each token's losses count.

Selection lives in the package `training`, above the kernels. It reaches the kernel as a `WeightRule`, which
`training_loss` calls once per micro-batch. This is the only call from the kernels up into `training`.

Shapes: N response tokens of a micro-batch, R of those reduced at a time, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tokenuq_ml.kernels.label_factors import Factor
from tokenuq_ml.transfers import to_device

Gain = Callable[[Tensor, Tensor, Tensor], Factor]
"""`gain(logits_RV, loss_R, selected_R)` returns a factor per token for its cross-entropy (`label_factors.py`).

The factor follows from the student's own logits and needs no further head product. A gain that does not read
`logits_RV` says so by an attribute `reads_logits = False`; it may then get an empty tensor.
"""


class Weights(NamedTuple):
    """Factors of each token's cross-entropy and divergence in the sum that `training_loss` returns."""

    mle_N: Tensor
    distill_N: Tensor


class Terms(NamedTuple):
    """Which terms a token may have: which of its weights may differ from 0."""

    mle: bool
    distill: bool


class KnownTerms(NamedTuple):
    """What the host knows of a decision before the device has made it."""

    selected: int | None
    """How many tokens are selected; None if only the device knows."""
    of_selected: Terms
    of_rest: Terms


class WeightRule(Protocol):
    """Decides how each token of a micro-batch is trained.

    A rule that selects by the student's loss sets `needs_losses`. The kernel then computes the cross-entropy of
    every token first, calls `decide` with it, and computes gradients only for the tokens that `decide` gives weight.
    """

    @property
    def needs_losses(self) -> bool:
        """Whether `decide` reads `loss_N`. Costs one head product per token, except with mean embeddings."""
        ...

    def decide(self, loss_N: Tensor) -> "BatchDecision":
        """Return the decision for the N tokens.

        Args:
            loss_N: cross-entropy of each token in nats; zeros if `needs_losses` is false.
        """
        ...


@dataclass(frozen=True)
class BatchDecision:
    """The decision for N tokens: which are selected, and their weights.

    A decision is also the `WeightRule` that returns it, for tokens that were decided before the kernel runs.
    """

    weights: Weights
    selected_N: Tensor
    """Boolean mask. The kernel passes it to the gain and returns it for the record."""
    known: KnownTerms | None = None
    """None if the host does not know which terms the tokens may have. On an accelerator the kernel then waits for the
    device (`token_groups.py`)."""

    @classmethod
    def of_weights(cls, mle_N: Tensor, distill_N: Tensor) -> "BatchDecision":
        """Return the decision with these weights, in which tokens with a cross-entropy weight are selected."""
        return cls(Weights(mle_N, distill_N), mle_N > 0)

    @property
    def needs_losses(self) -> bool:
        """False: the decision is made."""
        return False

    def decide(self, loss_N: Tensor) -> "BatchDecision":
        """Return this decision."""
        return self

    def part(self, rows: slice, device: str | torch.device) -> "BatchDecision":
        """Return the decision for some of the tokens, on a device."""
        mle_N, distill_N, selected_N = (column_N[rows] for column_N in (*self.weights, self.selected_N))
        is_on_host = selected_N.device.type == "cpu"
        known = self.known and self.known._replace(selected=int(selected_N.sum()) if is_on_host else None)
        weights = Weights(to_device(mle_N, device), to_device(distill_N, device))
        return BatchDecision(weights, to_device(selected_N, device), known)
