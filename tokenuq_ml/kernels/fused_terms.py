"""The terms of the training loss by the reductions of `fused.py`: a product at a time, and its gradient in its place.

Terms that are not fused (other divergences, the teacher's top K, a gain that reads logits) are those of
`loss_terms.py`, by PyTorch.

Shapes: N response tokens, C of them in one product, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tokenuq_ml.kernels import fused
from tokenuq_ml.kernels.fused import RowStatistics, Student
from tokenuq_ml.kernels.loss_terms import BlockTerms
from tokenuq_ml.kernels.weight_rule import Terms

InPlace = Callable[..., None]
"""`function(index_C, product_CV[, teacher_CV])` stores values and replaces the student's product by its gradient."""


class FusedTerms(BlockTerms):
    """`BlockTerms`, with functions that reduce a complete product."""

    def fused(self, terms: Terms) -> InPlace | None:
        """Return the fused function of some terms; None if they are not fused."""
        if not self.batch.backend.is_fused or (terms.mle and getattr(self.gain, "reads_logits", self.gain is not None)):
            return None
        if not terms.distill:
            return self._cross_entropy_in_place
        teacher = self.teacher
        if teacher is None or teacher.divergence != "forward_kl" or teacher.top_k is not None:
            return None
        return self._sum_in_place if terms.mle else self._divergence_in_place

    def _cross_entropy_in_place(self, index_C: Tensor, product_CV: Tensor) -> None:
        statistics, label_C = self._statistics(index_C, product_CV)
        weight_C = self._mle_weight(index_C, statistics)
        fused.softmax_gradient(product_CV, self.batch.head, statistics.lse_C, label_C, weight_C)

    def _divergence_in_place(self, index_C: Tensor, product_CV: Tensor, teacher_CV: Tensor) -> None:
        statistics, label_C = self._statistics(index_C, product_CV)
        if self.record_losses:
            self.batch.loss_N[index_C] = statistics.loss_C
        self._add_divergence(index_C, Student(product_CV, self.batch.head, label_C, statistics.lse_C), teacher_CV, None)

    def _sum_in_place(self, index_C: Tensor, product_CV: Tensor, teacher_CV: Tensor) -> None:
        statistics, label_C = self._statistics(index_C, product_CV)
        weight_C = self._mle_weight(index_C, statistics)
        student = Student(product_CV, self.batch.head, label_C, statistics.lse_C)
        self._add_divergence(index_C, student, teacher_CV, weight_C)

    def _statistics(self, index_C: Tensor, product_CV: Tensor) -> tuple[RowStatistics, Tensor]:
        """Return the statistics of a product, which go into the record too, and its labels."""
        label_C = self.batch.label_N[index_C]
        statistics = fused.row_statistics(product_CV, self.batch.head, label_C)
        if self.batch.statistics is not None:
            self.batch.statistics.add_rows(index_C, statistics)
        return statistics, label_C

    def _mle_weight(self, index_C: Tensor, statistics: RowStatistics) -> Tensor:
        """Store the cross-entropy, and return the factor of its gradient."""
        self.batch.loss_N[index_C] = statistics.loss_C
        weight_C = self.weights.mle_N[index_C].to(statistics.loss_C.dtype)
        if self.gain is None:
            return weight_C
        no_logits = torch.empty(0, 0, dtype=weight_C.dtype, device=weight_C.device)
        self._gain_N[index_C], slope_C = self.gain(no_logits, statistics.loss_C, self.selected_N[index_C])
        return weight_C * slope_C

    def _add_divergence(self, index_C: Tensor, student: Student, teacher_CV: Tensor, mle_C: Tensor | None) -> None:
        assert self.teacher is not None
        self.batch.divergence_N[index_C] = fused.forward_kl_gradient(
            student,
            teacher_CV,
            self.teacher.head or self.batch.head,
            self.weights.distill_N[index_C].to(student.lse_C.dtype),
            mle_C,
            self.teacher.temperature,
        )
