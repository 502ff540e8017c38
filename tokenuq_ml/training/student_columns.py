"""Columns of a micro-batch that are computed from the student's own logits, while the kernel computes its losses.

They cost no head product. Selection reads them like the columns of the token tables.

Shapes: N response tokens of a micro-batch, R of those reduced at a time, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.true_distributions import TrueDistributions
from tokenuq_ml.training.token_batch import TokenBatch

ColumnFunction = Callable[[slice, Tensor], Tensor]
"""`function(rows, logits_RV)` returns one number per token of the block; `rows` are its tokens among the N."""


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
        self.columns = {
            name: torch.full((len(like_N),), float("nan"), dtype=torch.float64, device=like_N.device)
            for name in functions
        }
        """NaN for tokens whose logits were not computed."""

    def observe(self, rows: slice, logits_RV: Tensor) -> None:
        """Compute the columns of a block."""
        for name, function in self._functions.items():
            self.columns[name][rows] = function(rows, logits_RV).double()


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
    return lambda rows, logits_RV: on_device.divergences(rows, logits_RV)[0]


STUDENT_COLUMNS: dict[str, Callable[[ColumnSource, TokenBatch], ColumnFunction]] = {
    "student_true_kl": student_true_kl,
}
"""The functions of `registry.STUDENT_COLUMNS`, made for each micro-batch."""


def student_columns(source: ColumnSource, batch: TokenBatch, names: Sequence[str]) -> StudentColumns | None:
    """Return the columns of a micro-batch, to be filled; None if no name is given."""
    if not names:
        return None
    return StudentColumns(batch.label_N, {name: STUDENT_COLUMNS[name](source, batch) for name in names})
