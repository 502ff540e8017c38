"""The divergence to the teacher of each token of a block whose logits are known, without a gradient.

Shapes: N response tokens, C of them in one product, R of those reduced at a time, D hidden size, V vocabulary.
"""

import torch
from torch import Tensor

from tokenuq_ml.kernels.head import Head, chunks
from tokenuq_ml.kernels.loss_terms import TeacherTerm, divergence
from tokenuq_ml.kernels.mean_embeddings import row_dot


class BlockDivergence:
    """Divergences of consecutive blocks of N tokens.

    Costs one head product per token for the teacher's logits; none from mean embeddings.

    Args:
        hidden_ND: the student's states, whose logits the blocks are.
        head: the student's head.
        teacher: the teacher's states, and which divergence.
    """

    def __init__(self, hidden_ND: Tensor, head: Head, teacher: TeacherTerm):
        self._hidden_ND, self._head, self._teacher = hidden_ND.detach(), teacher.head or head, teacher
        self._chunk, self._product_CV = slice(0, 0), torch.empty(0)

    @torch.no_grad()
    def of(self, rows: slice, logits_RV: Tensor) -> Tensor:
        """Return the divergence of each token of a block in nats.

        Args:
            rows: the block's tokens among the N; blocks come in their order.
            logits_RV: the student's logits.
        """
        states = self._teacher.states
        if states.mean_ND is None or states.offset_N is None:
            return divergence(logits_RV, self._teacher_logits(rows), self._teacher)[0]
        from_means_R = row_dot(self._hidden_ND[rows], states.mean_ND[rows])
        return torch.logsumexp(logits_RV, -1) - from_means_R - states.offset_N[rows]

    def _teacher_logits(self, rows: slice) -> Tensor:
        """Return the teacher's logits of a block, from one product for the chunk of blocks that begins with it."""
        hidden_ND = self._teacher.states.hidden_ND
        assert hidden_ND is not None
        if not self._chunk.start <= rows.start <= rows.stop <= self._chunk.stop:
            first = next(chunks(len(hidden_ND) - rows.start, self._head))
            self._chunk = slice(rows.start, rows.start + max(first.stop, rows.stop - rows.start))
            self._product_CV = self._head.product(hidden_ND[self._chunk])
        return self._head.finish(self._product_CV[rows.start - self._chunk.start : rows.stop - self._chunk.start])
