"""Scoring and BALD of one batch, as a study's stages compute them, without the tables that they write.

Shapes: N response tokens, K samples, D hidden size.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.accelerator.clock import Measured, StepClock
from benchmarks.accelerator.shapes import Setting, own_model, random_rows
from benchmarks.accelerator.specs import SAMPLES, UNCERTAINTY
from tokenuq_ml.data.batching import Batch, TokenizedExample, collate
from tokenuq_ml.kernels.scores import monte_carlo_scores, token_scores
from tokenuq_ml.models.adapters import freeze_adapter
from tokenuq_ml.models.dropout_passes import monte_carlo_dropout, sample_hidden_states
from tokenuq_ml.models.fast_inference import fast_inference
from tokenuq_ml.models.float32_passes import float32_passes
from tokenuq_ml.models.forward import causal_lm, head_of, hidden_states
from tokenuq_ml.models.numerics import Numerics

STATES_BYTES = 256 * 2**20
"""Most bytes for the hidden states of all samples of a batch. Repeated here because `scoring/mc_dropout.py` needs
polars; a test compares them."""
FLOAT32_BYTES = 4


def batch_of(setting: Setting, sequences: int) -> Batch:
    """Return the first sequences of the batch, on the device; the second half of each is scored."""
    ids_BT, labels_BT = random_rows(setting.shape)
    rows = zip(ids_BT[:sequences].tolist(), (labels_BT[:sequences] != -100).tolist(), strict=True)
    examples = [TokenizedExample(f"row/{n}", "random", "train", ids, mask) for n, (ids, mask) in enumerate(rows)]
    return collate(examples).to(setting.device)


def sequences_of_bald(setting: Setting) -> int:
    """Return the sequences of a batch of BALD, all of whose samples' states are in memory at once."""
    per_sequence = SAMPLES * FLOAT32_BYTES * setting.shape.architecture.hidden * setting.shape.length
    return min(setting.shape.sequences, max(1, STATES_BYTES // per_sequence))


def numerics_of(setting: Setting) -> Numerics:
    """Return the numerics of passes in the setting's dtype."""
    return Numerics(str(setting.device), setting.dtype, torch.get_num_threads(), "the benchmark")


def scoring_pass(model: PeftModel, batch: Batch, numerics: Numerics) -> Callable[[], list[Tensor]]:
    """Return a function that computes loss, entropy and rank of the batch's tokens, and brings them to the host."""

    @torch.no_grad()
    def score() -> list[Tensor]:
        hidden_ND = batch.predicting(hidden_states(model, batch.model_inputs, numerics))
        scores = token_scores(hidden_ND, head_of(model), batch.label_N)
        return [column_N.cpu() for column_N in (scores.loss_N, scores.entropy_N, scores.rank_N)]

    return score


def scoring(setting: Setting, clock: StepClock) -> Measured:
    """Score the batch in the setting's dtype."""
    model, numerics = freeze_adapter(own_model(setting)), numerics_of(setting)
    with fast_inference(causal_lm(model)):
        return clock.run(scoring_pass(model, batch_of(setting, setting.shape.sequences), numerics))


def bald(setting: Setting, clock: StepClock, rival: StepClock) -> tuple[Measured, Measured, int]:
    """Measure BALD of K samples, and one scoring pass in the same precision: both in float32.

    Returns:
        The cost of BALD of a batch, that of a scoring pass over the same batch, and the batch's sequences.
    """
    model, sequences = freeze_adapter(own_model(setting)), sequences_of_bald(setting)
    batch = batch_of(setting, sequences)
    with float32_passes(model) as dtype, fast_inference(causal_lm(model)):
        numerics = replace(numerics_of(setting), dtype=dtype)
        once = rival.run(scoring_pass(model, batch, numerics))
        with monte_carlo_dropout(model, UNCERTAINTY) as start_pass:

            @torch.no_grad()
            def sample() -> list[Tensor]:
                hidden_KND = sample_hidden_states(model, batch, start_pass, SAMPLES, numerics)
                return [column_N.cpu() for column_N in monte_carlo_scores(hidden_KND, head_of(model), batch.label_N)]

            return clock.run(sample), once, sequences
