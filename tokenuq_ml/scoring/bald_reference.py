"""BALD of a sample of examples in float64, with the same masks as in float32: the reference for the noise floor.

Uses the dropout rate, the samples and the masks of the study. `tables/bald_noise.py` defines the noise floor.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import cast

import polars as pl
import torch
from torch import nn

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import Batch, TokenizedExample, collate
from tokenuq_ml.kernels.scores import monte_carlo_scores
from tokenuq_ml.models.adapters import TrainedModel
from tokenuq_ml.models.dropout_passes import monte_carlo_dropout
from tokenuq_ml.models.float64_passes import float64_passes
from tokenuq_ml.models.forward import causal_lm, head_of, hidden_states, passes_through_root
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.batch_threads import map_batches
from tokenuq_ml.scoring.mc_dropout import uncertainty_rows
from tokenuq_ml.seeding import example_rank
from tokenuq_ml.tables.schemas import TOKEN_KEY

SAMPLE_TOKENS = 512
"""Tokens of the sample, prompts included: K float64 passes over it take some seconds per hundred million weights."""
CANDIDATES = 64
"""Examples that are drawn; the sample consists of those that fit `SAMPLE_TOKENS`."""


def reference_sample(examples: Iterable[TokenizedExample]) -> list[TokenizedExample]:
    """Return examples of all splits with at most `SAMPLE_TOKENS` tokens together, drawn by a hash of their ids.

    Returns the same examples for any order of `examples`, and at least one, however long. Memory is bounded.
    """
    scored = (example for example in examples if example.positions)
    drawn = heapq.nsmallest(CANDIDATES, scored, key=lambda one: example_rank(one.example_id))
    sample, tokens = [], 0
    for example in drawn:
        if tokens + len(example.input_ids) <= SAMPLE_TOKENS:
            sample.append(example)
            tokens += len(example.input_ids)
    return sample or sorted(drawn, key=lambda example: len(example.input_ids))[:1]


def float64_uncertainty(
    model: TrainedModel,
    sample: list[TokenizedExample],
    spec: UncertaintySpec,
    progress: Callable[[int], None] = lambda tokens: None,
) -> pl.DataFrame:
    """Return the rows of `token_uncertainty` in float64, one example at a time, with the masks of `spec`.

    In a stage of several processes, examples are dealt to the ranks, and every rank gets all rows.

    Args:
        model: With an active LoRA adapter; in any dtype.
        sample: What `reference_sample` returns.
        spec: As for `token_uncertainty`.
        progress: Called with the number of tokens of each example that is done, times K.
    """
    if model.device.type == "mps":
        device, module = model.device, cast(nn.Module, model)
        try:
            # MPS has no float64.
            module.to("cpu")
            return float64_uncertainty(model, sample, spec, progress)
        finally:
            module.to(device)
    rows = []
    with reference_pass(model, spec) as score:
        for found, tokens in score(map(collate, ([example] for example in sample))):
            rows.append(found)
            progress(tokens)
    return pl.concat(rows)


@contextmanager
def reference_pass(
    model: TrainedModel, spec: UncertaintySpec
) -> Iterator[Callable[[Iterable[Batch]], Iterator[tuple[pl.DataFrame, int]]]]:
    """Yield a function that gives each batch's rows in float64, in the order of the batches, and its tokens times K.

    Args:
        model: As for `float64_uncertainty`.
        spec: As for `token_uncertainty`.
    """
    numerics = Numerics(str(model.device), torch.float64, torch.get_num_threads(), "the reference of BALD")
    with ExitStack() as stack:
        stack.enter_context(passes_through_root(model))
        head = head_of(model)
        head = replace(
            head, weight_VD=head.weight_VD.double(), bias_V=None if head.bias_V is None else head.bias_V.double()
        )
        start_pass = stack.enter_context(monte_carlo_dropout(model, spec))

        @torch.no_grad()
        def rows_of(batch: Batch) -> tuple[pl.DataFrame, int]:
            ids, states = [example.example_id for example in batch.examples], []
            # For each batch again, since it holds for this thread only.
            with float64_passes(causal_lm(model)):
                for number in range(spec.samples):
                    start_pass(number, ids)
                    states.append(batch.predicting(hidden_states(model, batch.model_inputs)))
                scores = monte_carlo_scores(torch.stack(states), head, batch.label_N)
            tokens = sum(len(example.input_ids) for example in batch.examples)
            return uncertainty_rows(batch, scores, spec), tokens * spec.samples

        yield lambda batches: map_batches(rows_of, batches, model, numerics, workers=1)


def reference_rows(stored: pl.DataFrame, float64: pl.DataFrame) -> pl.DataFrame:
    """Return the table `bald_reference`: BALD of the sample as stored, next to BALD in float64."""
    return stored.select(*TOKEN_KEY, "bald").join(
        float64.select(*TOKEN_KEY, bald_float64="bald"), on=TOKEN_KEY, validate="1:1", maintain_order="left"
    )
