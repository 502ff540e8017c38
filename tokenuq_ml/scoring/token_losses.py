"""Loss, entropy and rank of each response token under a model, batch by batch, without dropout.

Shapes: N response tokens of a batch, D hidden size, M held-out tokens, A alternatives.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import NamedTuple

import polars as pl
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.data.batching import Batch, TokenizedExample
from tokenuq_ml.data.token_categories import categorise, special_ids, token_texts
from tokenuq_ml.kernels.scores import TokenScores, token_scores
from tokenuq_ml.models.fast_inference import fast_inference
from tokenuq_ml.models.forward import causal_lm, head_of, hidden_states, passes_through_root
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.batch_threads import BatchPlan, map_batches
from tokenuq_ml.scoring.finite_scores import located, require_finite_scores
from tokenuq_ml.scoring.token_truth import TokenTruth
from tokenuq_ml.tables.schemas import TOKEN_KEY

N_ALTERNATIVES = 5
"""Likeliest tokens stored for each held-out token."""
ALTERNATIVES_SCHEMA = {
    "example_id": pl.String,
    "position": pl.Int32,
    "choice": pl.Int8,
    "token_id": pl.Int32,
    "probability": pl.Float32,
}


class ScoredBatch(NamedTuple):
    """A batch, its table rows, and the hidden states that predict its response tokens."""

    batch: Batch
    rows: pl.DataFrame
    hidden_ND: Tensor
    alternatives: pl.DataFrame
    """`ALTERNATIVES_SCHEMA`; no rows unless alternatives were asked for."""


class ScoredRows(NamedTuple):
    """The table rows of a batch."""

    rows: pl.DataFrame
    alternatives: pl.DataFrame
    tokens: int
    """Tokens of the batch, prompts included."""


@torch.no_grad()
def score_batch(
    model: PreTrainedModel | PeftModel,
    batch: Batch,
    numerics: Numerics,
    alternatives: int = 0,
    truth: TokenTruth | None = None,
) -> ScoredBatch:
    """Score one batch with one forward pass.

    Args:
        model: In eval mode.
        batch: On the model's device.
        numerics: Dtype of the pass.
        alternatives: How many of the most likely tokens to return for each held-out token (of a split other than
            `train`), from the same product with the head.
        truth: The distributions that generated the tokens, for the divergence from them.

    Returns:
        The batch with rows `example_id, dataset, split, position, token_id, loss, entropy, rank`; with `truth` also
        `true_kl, clean_kl`, null for tokens whose distribution is not known.

    Raises:
        NonFiniteError: a loss or an entropy is NaN or infinite.
    """
    hidden_ND = batch.predicting(hidden_states(model, batch.model_inputs, numerics))
    held_out = [example.split != "train" for example in batch.examples for _ in example.positions]
    # On the host, which then knows how many they are.
    wanted_N = torch.tensor(held_out, dtype=torch.bool)
    known = None if truth is None else truth.of(batch.examples).to(hidden_ND.device)
    scores = token_scores(hidden_ND, head_of(model), batch.label_N, alternatives, wanted_N, known)
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
    if scores.true_kl_N is not None and scores.clean_kl_N is not None:
        divergences = {"true_kl": scores.true_kl_N, "clean_kl": scores.clean_kl_N}
        rows = rows.with_columns(
            pl.Series(name, kl_N.cpu().numpy(), nan_to_null=True) for name, kl_N in divergences.items()
        )
    require_finite_scores(rows, batch)
    return ScoredBatch(batch, rows, hidden_ND, _alternatives(rows, held_out, scores))


def _alternatives(rows: pl.DataFrame, held_out: list[bool], scores: TokenScores) -> pl.DataFrame:
    """Return one row per held-out token and choice."""
    if scores.choice_MA is None or scores.probability_MA is None:
        return pl.DataFrame(schema=ALTERNATIVES_SCHEMA)
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
    keep: Callable[[ScoredBatch], None] = lambda scored: None,
    first: int = 0,
    truth: TokenTruth | None = None,
) -> Iterator[ScoredRows]:
    """Score all examples, the longest first.

    Args:
        model: Put into eval mode. Its active adapter, if any, takes part.
        examples: In any order.
        numerics: Device, dtype and threads.
        progress: Called with the number of tokens of each batch that is done.
        max_tokens: Most padded tokens per batch. The default suits the device.
        alternatives: As for `score_batch`.
        keep: Called with each batch, on the rank that has scored it.
        first: Number of the batch to begin with: those before it are known already.
        truth: As for `score_batch`.
    """
    plan = BatchPlan.of(model, numerics, max_tokens)
    with loss_pass(model, numerics, alternatives, keep, truth) as score:
        for scored in score(islice(plan.batches(examples), first, None)):
            progress(scored.tokens)
            yield scored


@contextmanager
def loss_pass(
    model: PreTrainedModel | PeftModel,
    numerics: Numerics,
    alternatives: int = 0,
    keep: Callable[[ScoredBatch], None] = lambda scored: None,
    truth: TokenTruth | None = None,
) -> Iterator[Callable[[Iterable[Batch]], Iterator[ScoredRows]]]:
    """Yield a function that scores batches, in their order; the arguments are those of `scored_batches`."""

    def finish(scored: ScoredBatch) -> ScoredRows:
        keep(scored)
        tokens = sum(len(example.input_ids) for example in scored.batch.examples)
        return ScoredRows(scored.rows, scored.alternatives, tokens)

    model.eval()
    score = partial(score_batch, model, numerics=numerics, alternatives=alternatives, truth=truth)
    with located(model, numerics), passes_through_root(model), fast_inference(causal_lm(model)):
        yield lambda batches: map_batches(score, batches, model, numerics, finish)


def score_examples(
    model: PreTrainedModel | PeftModel,
    examples: list[TokenizedExample],
    numerics: Numerics,
    progress: Callable[[int], None] = lambda tokens: None,
    max_tokens: int | None = None,
    truth: TokenTruth | None = None,
) -> pl.DataFrame:
    """Return the rows of all examples; the arguments are those of `scored_batches`."""
    batches = scored_batches(model, examples, numerics, progress, max_tokens, truth=truth)
    return pl.concat([batch.rows for batch in batches])


def with_categories(tokens: pl.DataFrame, tokenizer: PreTrainedTokenizerBase) -> pl.DataFrame:
    """Add the columns `token` (its text) and `category`; sorts rows, since a category depends on the token before."""
    tokens = tokens.sort(*TOKEN_KEY)
    texts = token_texts(tokenizer, tokens["token_id"].to_list())
    special = special_ids(tokenizer)
    tokens = tokens.with_columns(token=pl.Series(texts), special=pl.col("token_id").is_in(special))
    categories: list[str] = []
    for (_,), group in tokens.group_by("example_id", maintain_order=True):
        categories += categorise(group["token"].to_list(), group["special"].to_list())
    return tokens.drop("special").with_columns(category=pl.Series(categories))
