"""Gradients that a kernel computes in the forward pass, and how autograd gets them.

They are with respect to the hidden states and, if it is trained, to the output head.

Shapes: N tokens, C of them in one product, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from tokenuq_ml.kernels.backend import backend_of
from tokenuq_ml.kernels.head import Head, accumulation_dtype


class Gradients:
    """Gradients with respect to the hidden states and, if it is trained, to the head."""

    def __init__(self, hidden_ND: Tensor, head: Head):
        self.hidden_ND, self.head = hidden_ND, head
        self.grad_ND = torch.zeros_like(hidden_ND)
        # One launch in place of three.
        self._each_row_once = backend_of(hidden_ND).is_accelerator
        leaves = (head.weight_VD, head.bias_V)
        # In float32 even for a head of lower precision, because chunks are summed.
        self.grad_of_head = [
            torch.zeros_like(leaf, dtype=accumulation_dtype(leaf)) if leaf is not None and leaf.requires_grad else None
            for leaf in leaves
        ]

    @property
    def head_is_trained(self) -> bool:
        """Whether the head's weight or bias has a gradient."""
        return any(grad is not None for grad in self.grad_of_head)

    def add(self, index_C: Tensor, product_grad_CV: Tensor) -> None:
        """Add the gradients of some rows, which have none yet.

        Args:
            index_C: which of the N rows.
            product_grad_CV: gradient with respect to their head product.
        """
        grad_CD = self.head.hidden_gradient(product_grad_CV).to(self.grad_ND.dtype)
        if self._each_row_once:
            self.grad_ND.index_copy_(0, index_C, grad_CD)
        else:
            self.grad_ND[index_C] += grad_CD
        grad_VD, grad_V = self.grad_of_head
        if grad_VD is not None:
            rows_CD = self.hidden_ND.detach()[index_C].to(product_grad_CV.dtype)
            with torch.autocast(rows_CD.device.type, enabled=False):
                grad_VD += product_grad_CV.T @ rows_CD
        if grad_V is not None:
            grad_V += product_grad_CV.sum(0, dtype=grad_V.dtype)

    def attach(self, total: Tensor) -> Tensor:
        """Return `total` as a tensor whose backward pass returns these gradients."""
        grads = [self.grad_ND, *self.grad_of_head]
        return _Attached.apply(total, grads, self.hidden_ND, self.head.weight_VD, self.head.bias_V)


class _Attached(torch.autograd.Function):
    """The identity of a scalar whose gradients with respect to the inputs are known."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, grads: list[Tensor | None], *inputs: Tensor | None) -> Tensor:
        pairs = zip(grads, inputs, strict=True)
        ctx.save_for_backward(*(None if g is None or x is None else g.to(x.dtype) for g, x in pairs))
        return total.clone()

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if g is None else g * grad_total.to(g.dtype) for g in ctx.saved_tensors)
