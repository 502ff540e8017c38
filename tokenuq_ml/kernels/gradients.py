"""Gradients that a kernel computes on the way forward, and how autograd gets them.

With respect to hidden states and, where it is trained, to the output head. Knows nothing of losses.

Shapes: N tokens, C of them in one product, D hidden size, V vocabulary.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenuq_ml.kernels.head import accumulation

if TYPE_CHECKING:
    from tokenuq_ml.kernels.head import Head


class Gradients:
    """Gradients with respect to the hidden states and, where it is trainable, to the head."""

    def __init__(self, hidden_ND: Tensor, head: "Head"):
        self.hidden_ND, self.head = hidden_ND, head
        self.grad_ND = torch.zeros_like(hidden_ND)
        leaves = (head.weight_VD, head.bias_V)
        # In float32 whatever the head's dtype: chunks are summed.
        self.grad_of_head = [
            torch.zeros_like(leaf, dtype=accumulation(leaf)) if leaf is not None and leaf.requires_grad else None
            for leaf in leaves
        ]

    @property
    def of_head(self) -> bool:
        return any(grad is not None for grad in self.grad_of_head)

    def add(self, index_C: Tensor, product_grad_CV: Tensor) -> None:
        """Those of some rows, from the gradient with respect to their head product."""
        self.grad_ND[index_C] += self.head.hidden_gradient(product_grad_CV).to(self.grad_ND.dtype)
        grad_VD, grad_V = self.grad_of_head
        if grad_VD is not None:
            rows_CD = self.hidden_ND.detach()[index_C].to(product_grad_CV.dtype)
            with torch.autocast(rows_CD.device.type, enabled=False):
                grad_VD += product_grad_CV.T @ rows_CD
        if grad_V is not None:
            grad_V += product_grad_CV.sum(0, dtype=grad_V.dtype)

    def attach(self, total: Tensor) -> Tensor:
        """`total`, with these gradients behind it."""
        grads = [self.grad_ND, *self.grad_of_head]
        return _Attached.apply(total, grads, self.hidden_ND, self.head.weight_VD, self.head.bias_V)


class _Attached(torch.autograd.Function):
    """The identity of a scalar, whose gradient with respect to the inputs was computed before."""

    @staticmethod
    def forward(ctx, total, grads, *inputs):
        ctx.save_for_backward(*(None if g is None else g.to(x.dtype) for g, x in zip(grads, inputs, strict=True)))
        return total.clone()

    @staticmethod
    def backward(ctx, grad_total):
        return None, None, *(None if g is None else g * grad_total.to(g.dtype) for g in ctx.saved_tensors)
