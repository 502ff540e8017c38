"""The rates at which dropout masks can drop: steps of `1 / MASK_LEVELS`. Does not import torch or pydantic."""

MASK_LEVELS = 2**16
"""Levels of a dropout rate: masks of Monte-Carlo dropout compare sixteen random bits with a threshold."""


def dropped_levels(p: float) -> int:
    """Return how many of the `MASK_LEVELS` equally likely draws are dropped.

    Raises:
        ValueError: `p` rounds to 0 or 1. At 0 all passes would be equal and BALD 0.
    """
    levels = round(p * MASK_LEVELS)
    if not 0 < levels < MASK_LEVELS:
        raise ValueError(f"dropout {p:g} drops nothing or everything: masks have steps of 1/{MASK_LEVELS}")
    return levels
