"""Mean output embeddings: a teacher's distribution in the form that needs no head product to learn from.

Shapes: N response tokens, C of them in one product, R of those reduced at a time, D hidden size, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tokenuq_ml.kernels.head import Head, accumulation, blocks, chunks, joined


class TeacherStates(NamedTuple):
    """A teacher's distributions q of N tokens, in either of two forms.

    `hidden_ND`: its states after the final norm; the head gives any divergence from them.
    `mean_ND` and `offset_N`: the gradient `mu` of log-sum-exp at those states, and log-sum-exp less
    `hidden . mu`; see `mean_embeddings`. They give forward KL at temperature 1 without a head product.
    """

    hidden_ND: Tensor | None = None
    mean_ND: Tensor | None = None
    offset_N: Tensor | None = None


class MeanEmbeddings(NamedTuple):
    """Of N tokens: `mean_ND = scale * W^T p`, `lse_N`, `loss_N` of the labels (None without labels)."""

    mean_ND: Tensor
    lse_N: Tensor
    loss_N: Tensor | None

    def states(self, hidden_ND: Tensor) -> TeacherStates:
        """What a teacher's cache holds of these tokens, whose states are `hidden_ND`."""
        return TeacherStates(mean_ND=self.mean_ND, offset_N=self.lse_N - row_dot(hidden_ND, self.mean_ND))


@torch.no_grad()
def mean_embeddings(hidden_ND: Tensor, head: Head, label_N: Tensor | None = None) -> MeanEmbeddings:
    """The mean output embedding under each token's distribution p, which is the gradient of log-sum-exp.

    With it, log-sum-exp `lse` being convex in the hidden state h, forward KL is its Bregman divergence:
    `KL(q || p) = lse(h) - lse(h_q) - mu_q . (h - h_q)`, with gradient `mu_p - mu_q`; and cross-entropy
    has the gradient `mu_p - scale * W[label]`. Two head products a token. With a bfloat16 head the divergence of
    one token carries the rounding of its logits, some hundredths of a nat with mean 0; gradients carry what
    those from hidden states do.

    Raises:
        ValueError: the head soft-caps, so that its logits are not linear in the hidden state.
    """
    if head.softcap is not None:
        raise ValueError("mean embeddings need logits that are linear in the hidden state; this head soft-caps them")
    means, rows = [], []
    for chunk in chunks(len(hidden_ND), head):
        product_CV = head.product(hidden_ND[chunk])
        for block in blocks(len(product_CV), head, copies=2):
            z_RV = head.finish(product_CV[block])
            max_R1 = z_RV.amax(1, keepdim=True)
            z_RV -= max_R1
            row = () if label_N is None else (z_RV.gather(1, label_N[chunk][block, None])[:, 0],)
            sum_R1 = z_RV.exp_().sum(1, keepdim=True)
            log_R = sum_R1[:, 0].log()
            rows.append((max_R1[:, 0] + log_R, *(log_R - label_R for label_R in row)))
            product_CV[block] = z_RV.mul_(head.scale / sum_R1)
        means.append(head.hidden_gradient(product_CV))
    mean_ND = torch.cat(means) if means else hidden_ND.to(head.weight_VD.dtype, copy=True)
    lse_N, *loss = joined(rows, hidden_ND, (None,) * (1 if label_N is None else 2))
    return MeanEmbeddings(mean_ND, lse_N, loss[0] if loss else None)


def row_dot(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Row by row, in float32 (float64 for float64)."""
    return (a_ND.to(accumulation(a_ND)) * b_ND).sum(1)
