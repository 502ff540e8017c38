"""How far training has moved the teacher's distribution of each token from the base model's.

Shapes: N response tokens of a batch, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import polars as pl
import torch
from torch import Tensor

from tokenuq_ml import process_group
from tokenuq_ml.data.batching import Batch, TokenizedExample
from tokenuq_ml.kernels.block_divergence import BlockDivergence
from tokenuq_ml.kernels.loss_terms import TeacherTerm
from tokenuq_ml.kernels.mean_embeddings import TeacherStates
from tokenuq_ml.kernels.scores import token_losses
from tokenuq_ml.models.adapters import TrainedModel, use_adapter
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.batch_threads import BatchPlan
from tokenuq_ml.scoring.token_losses import ScoredBatch, loss_pass
from tokenuq_ml.tables.schemas import TOKEN_KEY


def teacher_change(
    model: TrainedModel,
    examples: list[TokenizedExample],
    numerics: Numerics,
    progress: Callable[[int], None] = lambda tokens: None,
) -> pl.DataFrame:
    """Return rows `example_id, position, change`, where change is `KL(teacher || base model)` in nats.

    Args:
        model: with the teacher's adapter active.
        examples: whose response tokens are compared.
        numerics: of the passes; float32, or small divergences drown in rounding.
        progress: called with the number of tokens of each batch and pass that is done.
    """
    batches = list(BatchPlan.of(model, numerics).batches(examples))
    return pl.concat(batch_changes(model, batches, numerics, progress)).sort(*TOKEN_KEY)


def batch_changes(
    model: TrainedModel,
    batches: Sequence[Batch],
    numerics: Numerics,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[pl.DataFrame]:
    """Return the rows of each batch, on every rank.

    Two passes over the batches. The teacher's states of all their tokens are in memory until its distributions are
    compared: D numbers per token of this rank's share. The arguments are those of `teacher_change`.
    """
    states: dict[tuple[str, ...], Tensor] = {}
    frames: list[pl.DataFrame] = []
    # The teacher's own values: where another set of weights takes its place, the head's parameter has that one's.
    head = head_of(model)
    bias_V = None if head.bias_V is None else head.bias_V.data
    teacher_head = replace(head, weight_VD=head.weight_VD.data, bias_V=bias_V)

    def keep_states(scored: ScoredBatch) -> None:
        states[_ids(scored)] = scored.hidden_ND

    def compare(scored: ScoredBatch) -> None:
        term = TeacherTerm(TeacherStates(states.pop(_ids(scored))), head=teacher_head)
        frames.append(_rows(scored, model, term))

    with loss_pass(model, numerics, keep=keep_states) as score:
        for scored in score(batches):
            progress(scored.tokens)
    with use_adapter(model, None), loss_pass(model, numerics, keep=compare) as score:
        for scored in score(batches):
            progress(scored.tokens)
    return list(process_group.merged(frames))


def _ids(scored: ScoredBatch) -> tuple[str, ...]:
    return tuple(example.example_id for example in scored.batch.examples)


def _rows(scored: ScoredBatch, model: TrainedModel, teacher: TeacherTerm) -> pl.DataFrame:
    """Return the rows of a batch, given its states under the base model."""
    head, label_N = head_of(model), scored.batch.label_N
    change_N = torch.zeros(len(label_N), dtype=torch.float32)
    divergence = BlockDivergence(scored.hidden_ND, head, teacher)

    def observe(rows: slice, logits_RV: Tensor) -> None:
        # A divergence is not negative, but rounding can make that of equal distributions so.
        change_N[rows] = divergence.of(rows, logits_RV).clamp(min=0).float().cpu()

    token_losses(scored.hidden_ND, head, label_N, observe)
    return scored.rows.select(*TOKEN_KEY).with_columns(change=pl.Series(change_N.numpy()))
