"""Entropy of each token, and whether its label is the likeliest token, from logits that a kernel computes anyway.

The training loss passes its blocks of logits through here, so these cost no head product and no tensor of the
vocabulary for all tokens.

Shapes: N response tokens, R of those reduced at a time, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tokenuq_ml.kernels import formulas

Rows = Tensor | slice
"""Which of the N tokens a block holds."""


class TokenStatistics:
    """Entropy and top-1 accuracy of those of N tokens whose logits were computed.

    Args:
        like: gives the device; its length is N.
        dtype: of the entropies.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype):
        self.entropy_N = torch.zeros(len(like), dtype=dtype, device=like.device)
        """Entropy in nats; 0 for tokens that are not counted."""
        self.is_top1_N = torch.zeros(len(like), dtype=torch.bool, device=like.device)
        """Whether the label is the likeliest token; of several likeliest ones, the first counts."""
        self.counted_N = torch.zeros(len(like), dtype=torch.bool, device=like.device)
        """Whether the token's logits were computed."""

    def observer(self, label_N: Tensor, index_M: Tensor | None = None) -> Callable[[slice, Tensor], None]:
        """Return the function that adds a block of the N tokens, or of M of them, by its rows and logits."""

        def observe(rows: slice, logits_RV: Tensor) -> None:
            index_R = rows if index_M is None else index_M[rows]
            self.add(index_R, logits_RV, label_N[index_R])

        return observe

    def add(self, rows: Rows, logits_RV: Tensor, label_R: Tensor) -> None:
        """Add a block by its logits: two further passes over them, and an exponential."""
        self._put(rows, formulas.entropy(logits_RV), logits_RV, label_R)

    def add_trained(self, rows: Rows, logits_RV: Tensor, label_R: Tensor, loss_R: Tensor, grad_RV: Tensor) -> None:
        """Add a block whose cross-entropy and its gradient are known: one dot product per token gives the entropy."""
        self._put(rows, formulas.entropy_from_gradient(loss_R, grad_RV, logits_RV), logits_RV, label_R)

    def _put(self, rows: Rows, entropy_R: Tensor, logits_RV: Tensor, label_R: Tensor) -> None:
        self.entropy_N[rows] = entropy_R.to(self.entropy_N.dtype)
        self.is_top1_N[rows] = logits_RV.argmax(1) == label_R
        self.counted_N[rows] = True
