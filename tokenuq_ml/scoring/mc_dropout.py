"""Monte-Carlo dropout over LoRA adapters: K stochastic forward passes, and BALD of each response token.

The passes are those of `models/dropout_passes.py`, in float32 on every device (`float32_passes.py` says why, and what
it costs).

Shapes: B sequences, T positions, D features, N response tokens, K samples.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import polars as pl
from peft import PeftModel
from transformers import PreTrainedModel

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import Batch, TokenizedExample
from tokenuq_ml.kernels.scores import MonteCarloScores, monte_carlo_scores
from tokenuq_ml.models.dropout_passes import monte_carlo_dropout, sample_hidden_states
from tokenuq_ml.models.fast_inference import fast_inference
from tokenuq_ml.models.float32_passes import float32_passes
from tokenuq_ml.models.forward import causal_lm, head_of, passes_through_root
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.batch_threads import BatchPlan, batch_tokens, map_batches
from tokenuq_ml.scoring.finite_scores import located, require_finite_scores

STATES_BYTES = 256 * 2**20
"""Most bytes for the hidden states of all samples of a batch."""


def token_uncertainty(
    model: PeftModel | PreTrainedModel,
    examples: list[TokenizedExample],
    spec: UncertaintySpec,
    numerics: Numerics,
    progress: Callable[[int], None] = lambda tokens: None,
    max_tokens: int | None = None,
) -> pl.DataFrame:
    """Return the rows of the table `token_uncertainty` for `examples` under the active adapter, computed in float32.

    BALD is the plug-in estimate from K samples, whose mean is about (K - 1) / K of the true value. It is not corrected,
    so that predictive entropy = expected entropy + BALD holds in each row. `bald_std_error` is the spread of the
    estimate over draws of the masks, in nats.

    All K hidden states of a batch are in memory at once. Batches shrink where they would exceed `STATES_BYTES`, so that
    memory does not grow with K.

    Args:
        model: With an active LoRA adapter, or without any. A model in bfloat16 is widened while this runs.
        examples: In any order; masks depend on the example, not on order or batching.
        spec: Samples, dropout rates, kind of mask and seed.
        numerics: Device and threads; its dtype is not used.
        progress: Called with the number of tokens of each batch that is done, times K.
        max_tokens: Most padded tokens per batch. The default suits the device.
    """
    with float32_passes(model) as dtype:
        return uncertainty_in_model_dtype(model, examples, spec, replace(numerics, dtype=dtype), progress, max_tokens)


def uncertainty_in_model_dtype(
    model: PeftModel | PreTrainedModel,
    examples: list[TokenizedExample],
    spec: UncertaintySpec,
    numerics: Numerics,
    progress: Callable[[int], None] = lambda tokens: None,
    max_tokens: int | None = None,
) -> pl.DataFrame:
    """Return the rows of `token_uncertainty` in the model's own dtype, for measurements of rounding errors.

    In bfloat16, BALD is mostly rounding error. The arguments are those of `token_uncertainty`; `numerics` has the
    dtype.
    """
    plan = uncertainty_plan(model, spec, numerics, max_tokens)
    return pl.concat(uncertainty_batches(model, plan.batches(examples), spec, numerics, progress))


def uncertainty_batches(
    model: PeftModel | PreTrainedModel,
    batches: Iterable[Batch],
    spec: UncertaintySpec,
    numerics: Numerics,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[pl.DataFrame]:
    """Yield the rows of each batch; the arguments are those of `uncertainty_in_model_dtype`."""
    with uncertainty_pass(model, spec, numerics) as score:
        for found, tokens in score(batches):
            progress(tokens)
            yield found


def uncertainty_plan(
    model: PeftModel | PreTrainedModel, spec: UncertaintySpec, numerics: Numerics, max_tokens: int | None = None
) -> BatchPlan:
    """Return how examples become batches, all of whose K hidden states are in memory at once."""
    head = head_of(model)
    bytes_per_token = spec.samples * head.features * head.weight_VD.element_size()
    most = min(max_tokens or batch_tokens(numerics), max(1, STATES_BYTES // bytes_per_token))
    return BatchPlan.of(model, numerics, most)


@contextmanager
def uncertainty_pass(
    model: PeftModel | PreTrainedModel, spec: UncertaintySpec, numerics: Numerics
) -> Iterator[Callable[[Iterable[Batch]], Iterator[tuple[pl.DataFrame, int]]]]:
    """Yield a function that gives each batch's rows, in the order of the batches, and its tokens times K.

    The arguments are those of `uncertainty_in_model_dtype`.
    """
    with ExitStack() as stack:
        stack.enter_context(located(model, numerics))
        stack.enter_context(passes_through_root(model))
        # Before dropout is replaced: passes that are compared with the model's own must not drop anything.
        head = head_of(model)
        stack.enter_context(fast_inference(causal_lm(model)))
        start_pass = stack.enter_context(monte_carlo_dropout(model, spec))

        def sample_scores(batch: Batch) -> tuple[Batch, MonteCarloScores]:
            hidden_KND = sample_hidden_states(model, batch, start_pass, spec.samples, numerics)
            return batch, monte_carlo_scores(hidden_KND, head, batch.label_N)

        def rows_of(scored: tuple[Batch, MonteCarloScores]) -> tuple[pl.DataFrame, int]:
            tokens = sum(len(example.input_ids) for example in scored[0].examples)
            return uncertainty_rows(*scored, spec), tokens * spec.samples

        yield lambda batches: map_batches(sample_scores, batches, model, numerics, rows_of)


def uncertainty_rows(batch: Batch, scores: MonteCarloScores, spec: UncertaintySpec) -> pl.DataFrame:
    """Return one row of the table `token_uncertainty` per response token of the batch.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    example_ids, positions = zip(*batch.keys, strict=True)
    rows = pl.DataFrame(
        {
            "example_id": list(example_ids),
            "position": list(positions),
            "predictive_entropy": scores.predictive_entropy_N.cpu().numpy(),
            "expected_entropy": scores.expected_entropy_N.cpu().numpy(),
            "bald": scores.bald_N.cpu().numpy(),
            "bald_std_error": scores.bald_std_error_N.cpu().numpy(),
            "mc_loss": scores.mc_loss_N.cpu().numpy(),
        }
    ).with_columns(n_samples=pl.lit(spec.samples, pl.Int16))
    return require_finite_scores(rows, batch)
