"""How far the logits of an exported model may be from those of base model plus adapter.

Both are computed in float32, so that they differ by the rounding of the merged weights alone, and by the order of sums.
Rounding a weight to a dtype changes it by up to its unit roundoff u, relatively: 2^-24 in float32, 2^-11 in float16,
2^-8 in bfloat16 (Higham, Accuracy and Stability of Numerical Algorithms (2002), section 2.1). Roundings of different
weights are independent, so a matrix product is off by about u / 2, relatively, and errors of layers add up as the root
of their number. For 100 layers of 4 products each that is 10 u. The bounds leave a factor of about two.

Shapes: P positions of a text, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenuq_ml.errors import InputError

MAX_SHARE_LOST = 0.5
"""Share of the change by training that rounding may be as large as."""


@dataclass(frozen=True)
class Bound:
    """What the logits of a model in one dtype may differ by."""

    relative: float
    """Root mean square of the differences, over that of the logits; both about the mean of a position."""
    kl: float
    """Mean Kullback-Leibler divergence from the trained model's distribution, nats per token."""


BOUNDS = {
    "float32": Bound(relative=1e-4, kl=1e-6),
    "float16": Bound(relative=1e-2, kl=1e-3),
    "bfloat16": Bound(relative=8e-2, kl=3e-2),
}
"""Dtype of the weights -> bound. 20 u in 16 bits; in float32 the order of sums decides, not the weights."""


@dataclass(frozen=True)
class Difference:
    """How two models differ on the same tokens."""

    max_abs: float
    """Largest difference of two logits."""
    relative: float
    kl: float
    positions: int

    def words(self) -> str:
        """Return the figures in words."""
        return (
            f"largest difference {self.max_abs:.2g}, {self.relative:.2g} of the logits' spread, KL {self.kl:.2g} nats "
            f"per token, over {self.positions} tokens"
        )


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> Difference:
    """Compare logits.

    Args:
        expected: of each text, `logits_PV` in float32.
        found: of the same texts.
    """
    largest, squares, spread, kl, positions = 0.0, 0.0, 0.0, 0.0, 0
    for expected_PV, found_PV in zip(expected, found, strict=True):
        gap_PV = found_PV - expected_PV
        largest = max(largest, gap_PV.abs().max().item())
        squares += (gap_PV - gap_PV.mean(-1, keepdim=True)).double().square().sum().item()
        spread += (expected_PV - expected_PV.mean(-1, keepdim=True)).double().square().sum().item()
        log_p_PV, log_q_PV = (each.double().log_softmax(-1) for each in (expected_PV, found_PV))
        kl += (log_p_PV.exp() * (log_p_PV - log_q_PV)).sum().item()
        positions += len(expected_PV)
    # Not `max`: a NaN must not become 0.
    return Difference(largest, math.sqrt(squares / spread), kl / positions, positions)


def require_equal(found: Difference, trained: Difference, dtype: str, what: str) -> None:
    """Check that a model equals the trained one.

    Args:
        found: its difference from the trained model.
        trained: the difference of the base model from the trained model.
        dtype: of its weights.
        what: how the message names it.

    Raises:
        InputError: it differs by more than the bound, or by as much as training has changed.
    """
    bound, wider = BOUNDS[dtype], "" if dtype == "float32" else "; use a wider --dtype (`dtype:`), such as float32"
    # Written so that NaN fails.
    if not (found.relative <= bound.relative and found.kl <= bound.kl):
        raise InputError(
            f"{what} does not give the logits of base model plus adapter: {found.words()}; {dtype} may differ by "
            f"{bound.relative:g} of their spread and KL {bound.kl:g}. Nothing is written{wider}"
        )
    if not found.relative <= MAX_SHARE_LOST * trained.relative and trained.relative > 0 and dtype != "float32":
        raise InputError(
            f"{what}: rounding to {dtype} changes the logits by {found.relative:.2g} of their spread, and training has "
            f"changed them by {trained.relative:.2g}: most of the training would be lost. Nothing is written{wider}"
        )


def require_tokens(logits: Sequence[Tensor]) -> None:
    """Check that there is something to compare, and that it is finite.

    Raises:
        InputError: there is no token, or a logit is NaN or infinite.
    """
    if not sum(len(each) for each in logits):
        raise InputError("no held-out example has a response token, so the exported model cannot be compared")
    if not all(bool(torch.isfinite(each).all()) for each in logits):
        raise InputError("the trained model's logits are not finite (NaN or Inf); train it again")
