"""The output head, which turns hidden states into logits, and the number of rows that it takes at a time.

All kernels compute logits through this module, a chunk of rows at a time, so no `[B, T, V]` or `[N, V]` tensor is
allocated. Matrix products run in the head's own dtype. Sums over the vocabulary are float32 (float64 for float64
input).

Shapes: N response tokens, C of them in one product, R of those reduced at a time, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenuq_ml.kernels.backend import backend_of

CHUNK_BYTES = 64 * 2**20
"""Budget on a CPU for the logits of one matrix product, in the head's dtype: enough rows for an efficient product."""
BLOCK_BYTES = 2**20
"""Budget on a CPU for the float32 logits that are reduced at a time: they fit the processor's cache, where the passes
of a softmax cost a fraction of what they cost in memory."""


@dataclass(frozen=True)
class Head:
    """The output layer: `logits = cap(scale * (hidden @ weight.T + bias))`."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""
        return self.weight_VD.shape[0]

    @property
    def features(self) -> int:
        """D, the width of the states that the head takes."""
        return self.weight_VD.shape[1]

    @property
    def is_linear(self) -> bool:
        """Whether logits are linear in the states, so that mean embeddings exist."""
        return self.softcap is None

    def product(self, hidden_CD: Tensor) -> Tensor:
        """Return `hidden @ weight.T` in the head's dtype; `hidden_CD` may have more leading dimensions."""
        rows_CD = hidden_CD.reshape(-1, hidden_CD.shape[-1]).to(self.weight_VD.dtype)
        with torch.autocast(hidden_CD.device.type, enabled=False):
            # Always two matrices: a batched product would copy the head for each item of the batch.
            return (rows_CD @ self.weight_VD.T).unflatten(0, hidden_CD.shape[:-1])

    def finish(self, product_RV: Tensor) -> Tensor:
        """Return the logits of a product, in float32 (float64 for a float64 head), as a new tensor."""
        logits_RV = product_RV.to(accumulation_dtype(product_RV), copy=True)
        if self.bias_V is not None:
            logits_RV += self.bias_V
        if self.scale != 1.0:
            logits_RV *= self.scale
        if self.softcap is not None:
            # Gemma-2, arXiv 2408.00118, section 2.
            logits_RV = self.softcap * torch.tanh(logits_RV / self.softcap)
        return logits_RV

    def product_gradient(self, grad_RV: Tensor, logits_RV: Tensor) -> Tensor:
        """Return the gradient with respect to the product, given that with respect to the logits."""
        if self.softcap is not None:
            grad_RV = grad_RV * (1 - (logits_RV / self.softcap) ** 2)
        return grad_RV * self.scale if self.scale != 1.0 else grad_RV

    def hidden_gradient(self, grad_CV: Tensor) -> Tensor:
        """Return `grad_CD`, the gradient with respect to the hidden states, given that with respect to the product."""
        with torch.autocast(grad_CV.device.type, enabled=False):
            return grad_CV @ self.weight_VD


class LogitsHead(Head):
    """The head of a model whose own forward pass computes the logits: the states are the logits, and D is V.

    For output layers that `Head` cannot express, e.g. with a LoRA adapter. Autograd carries the gradient of the logits
    on to whatever computed them. All N x V logits are in memory. `weight_VD` is `[V, 0]` and has their dtype.
    """

    @classmethod
    def of(cls, vocabulary: int, dtype: torch.dtype, device: torch.device) -> "LogitsHead":
        """Return the head of logits `[.., vocabulary]`."""
        return cls(torch.empty(vocabulary, 0, dtype=dtype, device=device))

    @property
    def features(self) -> int:
        """V, the width of the states."""
        return self.vocabulary

    @property
    def is_linear(self) -> bool:
        """Whether logits are linear in states of a useful width: they are not."""
        return False

    def product(self, hidden_CD: Tensor) -> Tensor:
        """Return the logits as they are."""
        return hidden_CD

    def hidden_gradient(self, grad_CV: Tensor) -> Tensor:
        """Return the gradient as it is."""
        return grad_CV


def chunks(rows: int, head: Head, copies: int = 1) -> Iterator[slice]:
    """Yield the rows of each matrix product, so that `copies` matrices of logits fit the budget."""
    row_bytes, backend = head.weight_VD.element_size() * head.vocabulary * copies, backend_of(head.weight_VD)
    if backend.is_accelerator:
        return _slices(rows, backend.rows_per_product(head.weight_VD.device, row_bytes))
    return _slices(rows, CHUNK_BYTES // row_bytes)


def blocks(rows: int, head: Head, copies: int = 1) -> Iterator[slice]:
    """Yield the rows that are reduced together within a chunk of `rows`."""
    row_bytes, backend = 4 * head.vocabulary * copies, backend_of(head.weight_VD)
    if backend.is_accelerator:
        return _slices(rows, backend.rows_per_reduction(head.weight_VD.device, row_bytes))
    return _slices(rows, BLOCK_BYTES // row_bytes)


def _slices(rows: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def accumulation_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of sums over `like`: float32, or float64 for float64."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def concatenate_blocks(
    blocks: Sequence[tuple[Tensor, ...]], like: Tensor, dtypes: tuple[torch.dtype | None, ...]
) -> list[Tensor]:
    """Return each value of the blocks over all N tokens; for no block, empty tensors.

    Args:
        blocks: the values of each block, `[R]` each.
        like: gives device and, for a dtype of None, dtype of empty tensors.
        dtypes: one per value; used only if there is no block.
    """
    if blocks:
        return [torch.cat(column) for column in zip(*blocks, strict=True)]
    return [torch.empty(0, dtype=dtype or accumulation_dtype(like), device=like.device) for dtype in dtypes]
