"""BALD of a sample of examples again in float64, with the very same masks: what the noise floor is read off.

At the study's own dropout, K and masks. Knows nothing of tables on disk; `bald_noise.py` says what the floor is.
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


def reference_sample(examples: Iterable[TokenizedExample]) -> list[TokenizedExample]:
    """Return examples of all splits with up to `SAMPLE_TOKENS` tokens, drawn by a hash of their ids.

    At least one, however long, and the same ones whatever the order; in bounded memory.
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
    """Return the `token_uncertainty` rows of the sample in float64, one example at a time, with the masks of `spec`."""
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
    """Return the `bald_reference` table: BALD of the sample as stored, next to BALD in float64."""
    return stored.select(*TOKEN_KEY, "bald").join(
        float64.select(*TOKEN_KEY, bald_float64="bald"), on=TOKEN_KEY, validate="1:1", maintain_order="left"
    )
