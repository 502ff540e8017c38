"""Columns of a micro-batch that are computed from the student's own logits, while the kernel computes its losses.

They cost no head product, except the divergence to a teacher that is known by its hidden states: one. Selection reads
them like the columns of the token tables.

Shapes: N response tokens of a micro-batch, R of those reduced at a time, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenuq_ml.config.registry import DIVERGENCE
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels import formulas
from tokenuq_ml.kernels.block_divergence import BlockDivergence
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.loss_terms import TeacherTerm
from tokenuq_ml.kernels.observers import Observer
from tokenuq_ml.kernels.true_distributions import TrueDistributions
from tokenuq_ml.training.token_batch import TokenBatch

ColumnFunction = Callable[[slice, Tensor, BlockDivergence | None], Tensor]
"""`function(rows, logits_RV, divergence)` returns one number per token of the block; `rows` are its tokens among the N,
`divergence` gives theirs to the teacher."""


class ColumnSource(Protocol):
    """What a column is computed with, apart from the student's logits: hooks of `TokenObjective`."""

    def true_distributions(self, batch: Any) -> TrueDistributions | None:
        """Return the distributions that generated the micro-batch's tokens; None if they are not known."""
        ...


class StudentColumns:
    """Columns of the N tokens of a micro-batch, filled block by block.

    Args:
        like_N: gives the device; its length is N.
        functions: name -> what computes the column.
    """

    def __init__(self, like_N: Tensor, functions: Mapping[str, ColumnFunction]):
        self._functions = functions
        # Apple's GPUs have no float64.
        dtype = torch.float32 if like_N.device.type == "mps" else torch.float64
        self.columns = {
            name: torch.full((len(like_N),), float("nan"), dtype=dtype, device=like_N.device) for name in functions
        }
        """NaN for tokens whose logits were not computed."""

    @property
    def read_divergence(self) -> bool:
        """Whether a column is computed with the teacher's distributions."""
        return DIVERGENCE in self._functions

    def observer(self, hidden_ND: Tensor, head: Head, teacher: TeacherTerm | None) -> Observer:
        """Return the function that computes the columns block by block, in a forward pass with these states."""
        divergence = BlockDivergence(hidden_ND, head, teacher) if self.read_divergence and teacher else None

        def observe(rows: slice, logits_RV: Tensor) -> None:
            for name, function in self._functions.items():
                self.columns[name][rows] = function(rows, logits_RV, divergence).to(self.columns[name])

        return observe


def student_true_kl(source: ColumnSource, batch: TokenBatch) -> ColumnFunction:
    """Return the function that computes `KL(truth || student)`.

    Raises:
        InputError: the distribution of a token is not known.
    """
    truth = source.true_distributions(batch)
    if truth is None or not bool(truth.is_known_N.all()):
        raise InputError(
            "the selection reads the true distribution of each trained token, which the data do not have; train on a "
            "synthetic language, or override `true_distributions` of TokenObjective"
        )
    on_device = truth.to(batch.label_N.device)
    return lambda rows, logits_RV, _: on_device.divergences(rows, logits_RV)[0]


def student_entropy(source: ColumnSource, batch: TokenBatch) -> ColumnFunction:
    """Return the function that computes the entropy of the student's distribution."""
    return lambda rows, logits_RV, _: formulas.entropy(logits_RV)


def student_divergence(source: ColumnSource, batch: TokenBatch) -> ColumnFunction:
    """Return the function that computes the divergence to the teacher that the ablation distils."""

    def function(rows: slice, logits_RV: Tensor, divergence: BlockDivergence | None) -> Tensor:
        assert divergence is not None, "an ablation that reads the divergence distils"
        return divergence.of(rows, logits_RV)

    return function


STUDENT_COLUMNS: dict[str, Callable[[ColumnSource, TokenBatch], ColumnFunction]] = {
    "student_true_kl": student_true_kl,
    "student_entropy": student_entropy,
    DIVERGENCE: student_divergence,
}
"""The functions of `registry.STUDENT_COLUMNS`, made for each micro-batch."""


def student_columns(source: ColumnSource, batch: TokenBatch, names: Sequence[str]) -> StudentColumns | None:
    """Return the columns of a micro-batch, to be filled; None if no name is given."""
    if not names:
        return None
    return StudentColumns(batch.label_N, {name: STUDENT_COLUMNS[name](source, batch) for name in names})
