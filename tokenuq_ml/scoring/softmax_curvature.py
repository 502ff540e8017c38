"""Curvature of cross-entropy in the weight of a linear output layer, as a backend of laplace-torch.

Laplace's own backends get it by automatic differentiation, one pass per output: V passes of each batch for the exact
Kronecker factors, and `[N, V, V D]` Jacobians for the diagonal. Of a linear layer it has a closed form. The Hessian is
the generalised Gauss-Newton matrix, because logits are linear in the weight.

Imports laplace-torch, which only studies with the estimators `laplace` and `laplace_diag` need.

Shapes: N tokens of a batch, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from laplace.curvature import GGNInterface
from laplace.utils.matrix import Kron
from torch import Tensor
from torch.nn.functional import cross_entropy


class SoftmaxCurvature(GGNInterface):
    """The Hessian of the summed cross-entropy of `softmax(W h)` in W, whose parameters are ordered `[V, D]`."""

    @torch.no_grad()
    def kron(self, x: Tensor, y: Tensor, N: int, **kwargs: Any) -> tuple[Tensor, Kron]:
        """Return loss and Kronecker factors (KFAC): `sum_n (diag p_n - p_n p_n^T)` and `sum_n h_n h_n^T / N`.

        Args:
            x: hidden states `[N, D]`.
            y: labels.
            N: tokens of all batches, over which the second factor is a mean.
            **kwargs: not used.
        """
        loss, p_NV = self._loss_and_probabilities(x, y)
        return loss, Kron([[torch.diag(p_NV.sum(0)) - p_NV.T @ p_NV, x.T @ x / N]])

    @torch.no_grad()
    def diag(self, x: Tensor, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return loss and diagonal: `sum_n p_nv (1 - p_nv) h_nd^2`; `kron` lists the arguments."""
        loss, p_NV = self._loss_and_probabilities(x, y)
        return loss, ((p_NV * (1 - p_NV)).T @ x**2).flatten()

    def _loss_and_probabilities(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = self.model(x)
        return cross_entropy(logits_NV, y, reduction="sum"), logits_NV.softmax(-1)
