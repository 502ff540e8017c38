"""What a training changes, and the bytes of it in memory, in a checkpoint and in the store."""

from tokenuq_ml.config import TrainSpec
from tokenuq_ml.costs.flops import Architecture

WEIGHT_BYTES, GRADIENT_BYTES = 4, 4
"""Per trained number: float32 weight and gradient."""
_WIDE, _EIGHT_BIT = 8.0, 2 * (1 + 4 / 256)
"""AdamW's two moments per trained number: float32; or 8 bits, with a float32 scale for every 256 of each."""
STORED_MOMENT_BYTES = {
    "adamw_torch": _WIDE,
    "adamw_torch_fused": _WIDE,
    "adamw_8bit": _EIGHT_BIT,
    "paged_adamw_32bit": _WIDE,
    "paged_adamw_8bit": _EIGHT_BIT,
}
"""Optimiser -> bytes of the moments per trained number."""


def trained_numbers(model: Architecture, train: TrainSpec, rank: int) -> int:
    """Return the numbers that a training changes: all weights, or an adapter's; with DoRA, one per feature more."""
    if train.adapter == "none":
        return model.parameters
    magnitudes = model.layers * sum(o for _, o in model.matrices) if train.adapter == "dora" else 0
    return model.adapter_parameters(rank) + magnitudes


def held_bytes(model: Architecture, train: TrainSpec, rank: int) -> float:
    """Return the bytes of what is trained in memory: gradients, moments, and of an adapter its weights.

    Paged moments are in the host's memory where the device has none left, and so are not counted.
    """
    weight = 0 if train.adapter == "none" else WEIGHT_BYTES
    moments = 0.0 if "paged" in train.optimizer else STORED_MOMENT_BYTES[train.optimizer]
    return trained_numbers(model, train, rank) * (weight + GRADIENT_BYTES + moments)


def stored_bytes(model: Architecture, train: TrainSpec, rank: int) -> float:
    """Return the bytes of a trained adapter, or of a complete model, in float32."""
    return WEIGHT_BYTES * trained_numbers(model, train, rank)


def checkpoint_bytes(model: Architecture, train: TrainSpec, rank: int) -> float:
    """Return the most bytes of a training's checkpoints: one is deleted after the next one is complete."""
    return 2 * trained_numbers(model, train, rank) * (WEIGHT_BYTES + STORED_MOMENT_BYTES[train.optimizer])
