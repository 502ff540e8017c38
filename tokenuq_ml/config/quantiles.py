"""The number of tokens that a quantile selects. Does not import torch, so that the pipeline's checks can count."""

from fractions import Fraction
from math import ceil


def count_selected(quantile: float, tokens: int) -> int:
    """Return `k = ceil(quantile * N)`, exact for decimal quantiles.

    In binary floating point 0.1 * 30 exceeds 3, and its ceiling would be 4.
    """
    return ceil(Fraction(str(quantile)) * tokens)
