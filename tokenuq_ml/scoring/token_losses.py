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

from tokenuq_ml.data.batching import Batch, TokenizedExample, length_batches
from tokenuq_ml.kernels.scores import TokenScores, token_scores
from tokenuq_ml.models.fast_inference import fast_inference
from tokenuq_ml.models.forward import causal_lm, head_of, hidden_states
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.batch_threads import batch_tokens, map_batches, num_workers
from tokenuq_ml.tables.schemas import TOKEN_KEY

ALTERNATIVES = {
    "example_id": pl.String,
    "position": pl.Int32,
    "choice": pl.Int8,
    "token_id": pl.Int32,
    "probability": pl.Float32,
}


class ScoredBatch(NamedTuple):
    """A batch, its table rows, and the hidden states from which its N response tokens are predicted."""

    batch: Batch
    rows: pl.DataFrame
    hidden_ND: Tensor
    alternatives: pl.DataFrame
    """`example_id, position, choice, token_id, probability`: none unless they were asked for."""


@torch.no_grad()
def score_batch(
    model: PreTrainedModel | PeftModel, batch: Batch, numerics: Numerics, alternatives: int = 0
) -> ScoredBatch:
    """Rows `example_id, dataset, split, position, token_id, loss, entropy, rank` of one batch, one forward pass.

    With `alternatives`, that many likeliest tokens of each token that is held out, in the same pass over the head.
    The batch is on the model's device, and the model in eval mode.
    """
    hidden_ND = batch.predicting(hidden_states(model, batch.model_inputs, numerics))
    held_out = [example.split != "train" for example in batch.examples for _ in example.positions]
    wanted_N = torch.tensor(held_out, device=hidden_ND.device)
    scores = token_scores(hidden_ND, head_of(model), batch.label_N, alternatives, wanted_N)
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
    return ScoredBatch(batch, rows, hidden_ND, _alternatives(rows, held_out, scores))


def _alternatives(rows: pl.DataFrame, held_out: list[bool], scores: TokenScores) -> pl.DataFrame:
    """One row a held-out token and choice."""
    if scores.choice_MA is None:
        return pl.DataFrame(schema=ALTERNATIVES)
    count = scores.choice_MA.shape[1]
    tokens = rows.select(*TOKEN_KEY).filter(pl.Series(held_out, dtype=pl.Boolean))
    return tokens.select(pl.all().repeat_by(count).explode()).with_columns(
        pl.Series("choice", list(range(count)) * len(tokens), dtype=pl.Int8),
        pl.Series("token_id", scores.choice_MA.flatten().int().cpu().numpy()),
        pl.Series("probability", scores.probability_MA.flatten().float().cpu().numpy()),
    )


def scored_batches(
    model: PreTrainedModel | PeftModel,
    examples: list[TokenizedExample],
    numerics: Numerics,
    progress: Callable[[int], None] = lambda tokens: None,
    max_tokens: int | None = None,
    alternatives: int = 0,
) -> Iterator[ScoredBatch]:
    """The batches of all examples, longest first, under the model as it stands (its active adapter, if any).

    `progress` is told of the tokens of each; `max_tokens` of a batch, padded, is by default what suits the device;
    `alternatives` as of `score_batch`.
    """
    model.eval()
    batches = length_batches(examples, max_tokens or batch_tokens(numerics), num_workers(model, numerics))
    score = partial(score_batch, model, numerics=numerics, alternatives=alternatives)
    with fast_inference(causal_lm(model)):
        for scored in map_batches(score, batches, model, numerics):
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
