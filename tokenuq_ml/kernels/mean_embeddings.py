"""Mean output embeddings: a form of a teacher's distribution from which distillation needs no teacher logits.

Shapes: N response tokens, C of them in one product, R of those reduced at a time, D hidden size, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tokenuq_ml.kernels import fused
from tokenuq_ml.kernels.backend import backend_of
from tokenuq_ml.kernels.head import Head, accumulation_dtype, blocks, chunks, concatenate_blocks
from tokenuq_ml.kernels.observers import Observer, observed_statistics


class TeacherStates(NamedTuple):
    """A teacher's distributions q of N tokens, in one of two forms.

    Hidden states give any divergence, by a head product. Mean embeddings give forward KL at temperature 1 without one.
    """

    hidden_ND: Tensor | None = None
    """Hidden states after the final norm."""
    mean_ND: Tensor | None = None
    """Mean embeddings: the gradient `mu` of log-sum-exp at those states; see `mean_embeddings`."""
    offset_N: Tensor | None = None
    """With `mean_ND`: log-sum-exp minus `hidden . mu`."""


class MeanEmbeddings(NamedTuple):
    """The mean output embedding of N tokens, and what the same pass over the head gives."""

    mean_ND: Tensor
    """`scale * W^T p`."""
    lse_N: Tensor
    """Log-sum-exp of the logits."""
    loss_N: Tensor | None
    """Cross-entropy of the labels in nats; None without labels."""

    def states(self, hidden_ND: Tensor) -> TeacherStates:
        """Return the form in which a teacher's cache stores these tokens.

        Args:
            hidden_ND: the states that the mean embeddings were computed from.
        """
        return TeacherStates(mean_ND=self.mean_ND, offset_N=self.lse_N - row_dot(hidden_ND, self.mean_ND))


@torch.no_grad()
def mean_embeddings(
    hidden_ND: Tensor,
    head: Head,
    label_N: Tensor | None = None,
    observe: Observer | None = None,
) -> MeanEmbeddings:
    """Return the mean output embedding `mu` under each token's distribution p: the gradient of log-sum-exp.

    Log-sum-exp `lse` is convex in the hidden state h, and forward KL is its Bregman divergence:
    `KL(q || p) = lse(h) - lse(h_q) - mu_q . (h - h_q)`, with gradient `mu_p - mu_q`. Cross-entropy has the gradient
    `mu_p - scale * W[label]`.

    Costs two head products per token. With a bfloat16 head, the divergence of one token carries the rounding of its
    logits: some hundredths of a nat, with mean 0. Gradients are as accurate as those from hidden states.

    Args:
        hidden_ND: states after the final norm.
        head: the head, without soft-capping.
        label_N: ids of the tokens, if their losses are wanted.
        observe: with labels: `observe(rows, logits_RV)` is called for each block; `rows` are its tokens among the N.

    Raises:
        ValueError: the head's logits are not linear in the hidden state, e.g. because it soft-caps them.
    """
    if not head.is_linear:
        raise ValueError("mean embeddings need logits that are linear in the hidden state, and this head's are not")
    means, rows, is_fused = [], [], backend_of(hidden_ND).is_fused
    for chunk in chunks(len(hidden_ND), head):
        product_CV = head.product(hidden_ND[chunk])
        if is_fused:
            rows.append(_softmax_in_place(product_CV, chunk, head, label_N, observe))
            means.append(head.hidden_gradient(product_CV))
            continue
        for block in blocks(len(product_CV), head, copies=2):
            z_RV = head.finish(product_CV[block])
            if observe is not None:
                observe(slice(chunk.start + block.start, chunk.start + block.stop), z_RV)
            max_R1 = z_RV.amax(1, keepdim=True)
            z_RV -= max_R1
            row = () if label_N is None else (z_RV.gather(1, label_N[chunk][block, None])[:, 0],)
            sum_R1 = z_RV.exp_().sum(1, keepdim=True)
            log_R = sum_R1[:, 0].log()
            rows.append((max_R1[:, 0] + log_R, *(log_R - label_R for label_R in row)))
            product_CV[block] = z_RV.mul_(head.scale / sum_R1)
        means.append(head.hidden_gradient(product_CV))
    mean_ND = torch.cat(means) if means else hidden_ND.to(head.weight_VD.dtype, copy=True)
    lse_N, *loss = concatenate_blocks(rows, hidden_ND, (None,) * (1 if label_N is None else 2))
    return MeanEmbeddings(mean_ND, lse_N, loss[0] if loss else None)


def _softmax_in_place(
    product_CV: Tensor, chunk: slice, head: Head, label_N: Tensor | None, observe: Observer | None
) -> tuple[Tensor, ...]:
    """Replace a product by `scale * p`; return log-sum-exp and, with labels, the loss of its rows."""
    label_C = None if label_N is None else label_N[chunk]
    if label_C is None:
        statistics = fused.row_statistics(product_CV, head)
    else:
        statistics = observed_statistics(product_CV, chunk, head, label_C, observe)
    fused.softmax_gradient(product_CV, head, statistics.lse_C)
    return (statistics.lse_C,) if label_C is None else (statistics.lse_C, statistics.loss_C)


def row_dot(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Return the dot product of each row, in float32 (float64 for float64)."""
    return (a_ND.to(accumulation_dtype(a_ND)) * b_ND).sum(1)
