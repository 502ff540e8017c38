"""Weight rules for tests of the training loss."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tokenuq_ml.kernels.weight_rule import BatchDecision


@dataclass(frozen=True)
class RuleFromLosses:
    """A `WeightRule` that needs the losses and calls a function with them."""

    function: Callable[[Tensor], BatchDecision]

    @property
    def needs_losses(self) -> bool:
        """True."""
        return True

    def decide(self, loss_N: Tensor) -> BatchDecision:
        """Return what the function returns."""
        return self.function(loss_N)
