"""BALD of an ensemble of adapters on one base model: each member is a sample of the trained adapter.

A deep ensemble (Lakshminarayanan et al. 2017, arXiv 1612.01474) of adapters, or of complete models, that differ in seed
and in the order of the data. Nothing is drawn at random: the K distributions of a token are those of the K members.

Shapes: N response tokens of a batch, D hidden size, K members.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import polars as pl
import torch
from torch import Tensor

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import Batch, TokenizedExample
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.head import Head, LogitsHead
from tokenuq_ml.kernels.scores import monte_carlo_scores
from tokenuq_ml.models.adapters import TrainedModel, use_adapter
from tokenuq_ml.models.fast_inference import fast_inference
from tokenuq_ml.models.float32_passes import float32_passes
from tokenuq_ml.models.forward import causal_lm, head_of, hidden_states
from tokenuq_ml.models.full_weights import has_full_weights
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.batch_threads import batch_tokens, map_batches
from tokenuq_ml.scoring.finite_scores import located
from tokenuq_ml.scoring.mc_dropout import STATES_BYTES, uncertainty_plan, uncertainty_rows
from tokenuq_ml.tables.schemas import TOKEN_KEY


def ensemble_uncertainty(
    model: TrainedModel,
    members: Sequence[str],
    examples: list[TokenizedExample],
    numerics: Numerics,
    progress: Callable[[int], None] = lambda tokens: None,
) -> pl.DataFrame:
    """Return rows of `token_uncertainty`, sorted, whose samples are the members; computed in float32.

    The members take turns on some batches at a time, whose states of all members fit `STATES_BYTES`.

    Args:
        model: with all members attached. Its active adapter stays what it is.
        members: names of the adapters, at least two.
        examples: in any order.
        numerics: device and threads; its dtype is not used.
        progress: called with the number of tokens of each batch and member that is done.

    Raises:
        InputError: a member changes the output layer, or needs the model's own forward pass for its logits.
    """
    spec = UncertaintySpec(samples=len(members))
    with float32_passes(model) as dtype:
        numerics = replace(numerics, dtype=dtype)
        head = shared_head(model, members)
        most = max(1, STATES_BYTES // (len(members) * head.features * head.weight_VD.element_size()))
        plan, frames = uncertainty_plan(model, spec, numerics, min(batch_tokens(numerics), most)), []
        for batches in _windows(plan.batches(examples), head, len(members)):
            states = [list(_states(model, member, batches, numerics, progress, head)) for member in members]
            for batch, *of_members in zip(batches, *states, strict=True):
                label_N = batch.to(numerics.device).label_N
                frames.append(uncertainty_rows(batch, monte_carlo_scores(torch.stack(of_members), head, label_N), spec))
    return pl.concat(frames).sort(*TOKEN_KEY)


def shared_head(model: TrainedModel, members: Sequence[str]) -> Head:
    """Return the output head that all members have; of complete models, each with its own, a head of logits.

    Raises:
        InputError: an adapter changes the output layer.
    """
    if has_full_weights(model):
        head = head_of(model)
        dtype = torch.float64 if head.weight_VD.dtype == torch.float64 else torch.float32
        return LogitsHead.of(head.vocabulary, dtype, head.weight_VD.device)
    heads = {}
    for member in members:
        with use_adapter(model, member):
            heads[member] = head_of(model)
    first = heads[members[0]]
    for member, head in heads.items():
        if isinstance(head, LogitsHead) or head.weight_VD is not first.weight_VD or head.bias_V is not first.bias_V:
            raise InputError(
                f"the adapter {member!r} changes the output layer, so members of an ensemble do not share one; leave "
                "it out of the adapters' targets, or remove 'adapter_ensemble' from uncertainty.estimators"
            )
    return first


def _windows(batches: Iterable[Batch], head: Head, members: int) -> Iterator[list[Batch]]:
    """Yield consecutive batches whose states of all members fit `STATES_BYTES`; at least one."""
    window, size = list[Batch](), 0
    for batch in batches:
        needed = members * len(batch.label_N) * head.features * head.weight_VD.element_size()
        if window and size + needed > STATES_BYTES:
            yield window
            window, size = [], 0
        window.append(batch)
        size += needed
    if window:
        yield window


def _states(
    model: TrainedModel,
    member: str,
    batches: list[Batch],
    numerics: Numerics,
    progress: Callable[[int], None],
    head: Head,
) -> Iterator[Tensor]:
    """Yield the states of each batch's response tokens under a member, which `head` turns into logits."""

    @torch.no_grad()
    def states_of(batch: Batch) -> tuple[Tensor, int]:
        tokens = sum(len(example.input_ids) for example in batch.examples)
        states = batch.predicting(hidden_states(model, batch.model_inputs, numerics))
        if isinstance(head, LogitsHead):
            own = head_of(model)
            states = own.finish(own.product(states))
        return states, tokens

    model.eval()
    with use_adapter(model, member), located(model, numerics), fast_inference(causal_lm(model)):
        for hidden_ND, tokens in map_batches(states_of, batches, model, numerics):
            progress(tokens)
            yield hidden_ND
