"""The response tokens of an optimiser batch, as selectors and objectives read them.

Notation: N response tokens of an optimiser batch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tokenuq_ml.config import registry
from tokenuq_ml.errors import InputError


@dataclass(frozen=True)
class Tokens:
    """The N response tokens of an optimiser batch, as selectors and users' own objectives read them.

    Tokens are ordered by rank, micro-batch, example and position.
    """

    loss_N: Tensor
    """The student's cross-entropy at this step in nats; zeros if the ablation does not depend on it."""
    example_N: Tensor
    """int64: the index of each token's example in the batch."""
    example_ids: tuple[str, ...] = ()
    """Ids of the examples by that index; empty if a Trainer's data have none."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """What the ablation reads, `[N]` each: columns of the token tables by names of `registry.COLUMNS`, and of the
    student's distributions by names of `registry.STUDENT_COLUMNS`."""
    teacher_mean: float = float("nan")
    """Mean of the teacher's loss over the train split in nats."""
    step: int = 1
    """The optimiser step, from 1."""
    steps: int = 1
    """Optimiser steps of the training."""
    seed: int = 0
    weight_N: Tensor | None = None
    """float32: the factor that the data give each token's term of the objective; None if all are 1."""

    @property
    def progress(self) -> float:
        """Share of training done: 0 at the first step, 1 at the last."""
        return (self.step - 1) / (self.steps - 1) if self.steps > 1 else 0.0

    def column(self, name: str) -> Tensor:
        """Return a column of the token tables, or of the student's distributions.

        Raises:
            InputError: the Trainer does not provide it, or the ablation does not name it.
        """
        if name in self.columns:
            return self.columns[name]
        if name not in registry.COLUMNS:
            known = ", ".join((*registry.COLUMNS, *registry.STUDENT_COLUMNS))
            raise InputError(f"the ablation's `columns` do not name {name!r}; add it, if it is one of {known}")
        table, column = registry.COLUMNS[name]
        raise InputError(
            f"the ablation reads column {column!r} of the table {table}, which this Trainer does not provide; override "
            "`token_columns` of TokenObjective, or use scores and objectives without columns (loss, random, dft)"
        )


def join(parts: Sequence[Tokens]) -> Tokens:
    """Return the tokens of several micro-batches of one step as one batch, in their order."""
    first, offsets = parts[0], [0, *itertools.accumulate(_examples(part) for part in parts)]
    return replace(
        first,
        loss_N=torch.cat([part.loss_N for part in parts]),
        example_N=torch.cat([part.example_N + offset for part, offset in zip(parts, offsets, strict=False)]),
        example_ids=tuple(name for part in parts for name in part.example_ids),
        columns={name: torch.cat([part.columns[name] for part in parts]) for name in first.columns},
        weight_N=_joined_weights(parts),
    )


def _joined_weights(parts: Sequence[Tokens]) -> Tensor | None:
    if all(part.weight_N is None for part in parts):
        return None
    return torch.cat([torch.ones_like(p.loss_N) if p.weight_N is None else p.weight_N.to(p.loss_N) for p in parts])


def _examples(tokens: Tokens) -> int:
    return len(tokens.example_ids) or (int(tokens.example_N.max()) + 1 if len(tokens.example_N) else 0)
