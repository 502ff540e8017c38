"""FLOPs of a pass over a dataset, and of a training: all tokens count as one step, since costs are linear in them."""

from collections.abc import Sequence

from tokenuq_ml.costs.flops import Architecture, Flops, Step, flops
from tokenuq_ml.costs.lengths import Lengths

PADDING = 1.06
"""Padded tokens per token of training batches, whose texts have similar lengths: 9,856 to 9,276 in
docs/results/ablation_matrix.md."""


def total_tokens(data: Sequence[Lengths]) -> float:
    """Return the tokens of the data."""
    return sum(one.rows * one.tokens for one in data)


def response_tokens(data: Sequence[Lengths]) -> float:
    """Return the response tokens of the data."""
    return sum(one.rows * one.response for one in data)


def scoring_flops(model: Architecture, data: Sequence[Lengths], rank: int) -> float:
    """Return the FLOPs of one forward pass of inference, with one head product per response token."""
    step = _step(data, rank)
    return flops(model, step).forward + step.response_tokens * model.head_product


def training_flops(model: Architecture, data: Sequence[Lengths], epochs: int, rank: int, **step) -> Flops:
    """Return the FLOPs of a training.

    Args:
        model: the model's sizes.
        data: the train split.
        epochs: passes over it.
        rank: the LoRA rank.
        **step: fields of `Step` that the ablation decides.
    """
    return flops(model, _step(data, rank, epochs, PADDING, records_losses=True, **step))


def _step(data: Sequence[Lengths], rank: int, repeats: float = 1.0, padding: float = 1.0, **more) -> Step:
    return Step(
        padded_tokens=repeats * padding * total_tokens(data),
        response_tokens=repeats * response_tokens(data),
        attended=repeats * padding**2 * sum(one.rows * one.squares for one in data) / 2,
        lora_rank=rank,
        **more,
    )
