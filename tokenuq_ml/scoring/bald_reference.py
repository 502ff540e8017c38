"""BALD of a sample of examples in float64, with the same masks as in float32: the reference for the noise floor.

Uses the dropout rate, the samples and the masks of the study. `tables/bald_noise.py` defines the noise floor.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import replace

import polars as pl
import torch
from peft import PeftModel

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample, collate
from tokenuq_ml.kernels.scores import monte_carlo_scores
from tokenuq_ml.models.float64_passes import float64_passes
from tokenuq_ml.models.forward import causal_lm, head_of, hidden_states
from tokenuq_ml.scoring.mc_dropout import monte_carlo_dropout, uncertainty_rows
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


@torch.no_grad()
def float64_uncertainty(
    model: PeftModel,
    sample: list[TokenizedExample],
    spec: UncertaintySpec,
    progress: Callable[[int], None] = lambda tokens: None,
) -> pl.DataFrame:
    """Return the rows of `token_uncertainty` in float64, one example at a time, with the masks of `spec`.

    Args:
        model: With an active LoRA adapter; in any dtype.
        sample: What `reference_sample` returns.
        spec: As for `token_uncertainty`.
        progress: Called with the number of tokens of each example that is done, times K.
    """
    if model.device.type == "mps":
        device = model.device
        try:
            # MPS has no float64.
            return float64_uncertainty(model.to("cpu"), sample, spec, progress)
        finally:
            model.to(device)
    head = head_of(model)
    head = replace(
        head, weight_VD=head.weight_VD.double(), bias_V=None if head.bias_V is None else head.bias_V.double()
    )
    rows = []
    with monte_carlo_dropout(model, spec) as start_pass, float64_passes(causal_lm(model)):
        for example in sample:
            batch, states = collate([example]).to(model.device), []
            for number in range(spec.samples):
                start_pass(number, [example.example_id])
                states.append(batch.predicting(hidden_states(model, batch.model_inputs)))
            rows.append(uncertainty_rows(batch, monte_carlo_scores(torch.stack(states), head, batch.label_N), spec))
            progress(len(example.input_ids) * spec.samples)
    return pl.concat(rows)


def reference_rows(stored: pl.DataFrame, float64: pl.DataFrame) -> pl.DataFrame:
    """Return the table `bald_reference`: BALD of the sample as stored, next to BALD in float64."""
    return stored.select(*TOKEN_KEY, "bald").join(
        float64.select(*TOKEN_KEY, bald_float64="bald"), on=TOKEN_KEY, validate="1:1", maintain_order="left"
    )
