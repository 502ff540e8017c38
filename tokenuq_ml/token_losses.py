"""Per-token loss, entropy and rank of examples under a model, streamed batch by batch.

Dropout off. Knows neither what the rows are used for nor where they are stored.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import polars as pl
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.batching import Batch, TokenizedExample, length_batches
from tokenuq_ml.inference import fast_inference
from tokenuq_ml.kernels import token_scores
from tokenuq_ml.models import Numerics, causal_lm, head_of, hidden_states
from tokenuq_ml.parallel import batch_tokens, map_batches, side_by_side


class ScoredBatch(NamedTuple):
    """A batch, its table rows, and the hidden states from which its N response tokens are predicted."""

    batch: Batch
    rows: pl.DataFrame
    hidden_ND: Tensor


@torch.no_grad()
def score_batch(model: PreTrainedModel | PeftModel, batch: Batch, numerics: Numerics) -> ScoredBatch:
    """Rows `example_id, dataset, split, position, token_id, loss, entropy, rank` of one batch, one forward pass.

    The batch is on the model's device, and the model in eval mode.
    """
    hidden_ND = batch.predicting(hidden_states(model, batch.model_inputs, numerics))
    scores = token_scores(hidden_ND, head_of(model), batch.label_N)
    owners = [(example, position) for example in batch.examples for position in example.positions]
    rows = pl.DataFrame(
        {
            "example_id": [example.example_id for example, _ in owners],
            "dataset": [example.dataset for example, _ in owners],
            "split": [example.split for example, _ in owners],
            "position": pl.Series([position for _, position in owners], dtype=pl.Int32),
            "token_id": batch.label_N.int().cpu().numpy(),
            "loss": scores.loss_N.float().cpu().numpy(),
            "entropy": scores.entropy_N.float().cpu().numpy(),
            "rank": scores.rank_N.cpu().numpy(),
        }
    )
    return ScoredBatch(batch, rows, hidden_ND)


def scored_batches(
    model: PreTrainedModel | PeftModel,
    examples: list[TokenizedExample],
    numerics: Numerics,
    progress: Callable[[int], None] = lambda tokens: None,
    max_tokens: int | None = None,
) -> Iterator[ScoredBatch]:
    """The batches of all examples, longest first, under the model as it stands (its active adapter, if any).

    `progress` is told of the tokens of each; `max_tokens` of a batch, padded, is by default what suits the device.
    """
    model.eval()
    batches = length_batches(examples, max_tokens or batch_tokens(numerics), side_by_side(model, numerics))
    with fast_inference(causal_lm(model)):
        for scored in map_batches(partial(score_batch, model, numerics=numerics), batches, model, numerics):
            progress(sum(len(example.input_ids) for example in scored.batch.examples))
            yield scored


def score_examples(
    model: PreTrainedModel | PeftModel,
    examples: list[TokenizedExample],
    numerics: Numerics,
    progress: Callable[[int], None] = lambda tokens: None,
    max_tokens: int | None = None,
) -> pl.DataFrame:
    """The rows of all examples; arguments as of `scored_batches`."""
    return pl.concat([batch.rows for batch in scored_batches(model, examples, numerics, progress, max_tokens)])
