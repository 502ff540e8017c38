"""Entropy of each token, and whether its label is the likeliest token, from logits that a kernel computes anyway.

The training loss passes its blocks of logits through here, so these cost no head product and no tensor of the
vocabulary for all tokens.

Shapes: N response tokens, R of those reduced at a time, V vocabulary.
"""

import torch
from torch import Tensor

from tokenuq_ml.kernels import formulas
from tokenuq_ml.kernels.fused import RowStatistics

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

    def observer(self, label_N: Tensor, index_M: Tensor | None = None) -> "StatisticsObserver":
        """Return the observer that adds a block of the N tokens, or of M of them, by its rows."""
        return StatisticsObserver(self, label_N, index_M)

    def keep(self, mask_N: Tensor) -> None:
        """Forget the tokens outside a mask."""
        self.counted_N &= mask_N
        self.is_top1_N &= mask_N
        self.entropy_N.masked_fill_(~mask_N, 0.0)

    def add(self, rows: Rows, logits_RV: Tensor, label_R: Tensor) -> None:
        """Add a block by its logits: two further passes over them, and an exponential."""
        self._put(rows, formulas.entropy(logits_RV), logits_RV, label_R)

    def add_trained(self, rows: Rows, logits_RV: Tensor, label_R: Tensor, loss_R: Tensor, grad_RV: Tensor) -> None:
        """Add a block whose cross-entropy and its gradient are known: one dot product per token gives the entropy."""
        self._put(rows, formulas.entropy_from_gradient(loss_R, grad_RV, logits_RV), logits_RV, label_R)

    def add_rows(self, rows: Rows, statistics: RowStatistics) -> None:
        """Add the rows of a product by their fused statistics."""
        self.entropy_N[rows] = statistics.entropy_C.to(self.entropy_N.dtype)
        self.is_top1_N[rows] = statistics.is_top1_C
        self.counted_N[rows] = True

    def _put(self, rows: Rows, entropy_R: Tensor, logits_RV: Tensor, label_R: Tensor) -> None:
        self.entropy_N[rows] = entropy_R.to(self.entropy_N.dtype)
        self.is_top1_N[rows] = logits_RV.argmax(1) == label_R
        self.counted_N[rows] = True


class StatisticsObserver:
    """Observer (`observers.py`) that adds blocks to the statistics.

    Args:
        statistics: what is added to.
        label_N: ids of the N tokens.
        index_M: which of the N tokens are observed; default: all.
    """

    def __init__(self, statistics: TokenStatistics, label_N: Tensor, index_M: Tensor | None = None):
        self._statistics, self._label_N, self._index_M = statistics, label_N, index_M

    def __call__(self, rows: slice, logits_RV: Tensor) -> None:
        """Add a block by its logits."""
        index_R = self._index(rows)
        self._statistics.add(index_R, logits_RV, self._label_N[index_R])

    def observe_rows(self, rows: slice, statistics: RowStatistics) -> None:
        """Add the rows of a product by their fused statistics."""
        self._statistics.add_rows(self._index(rows), statistics)

    def _index(self, rows: slice) -> Rows:
        return rows if self._index_M is None else self._index_M[rows]
