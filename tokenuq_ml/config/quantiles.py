"""How many tokens a quantile is. Torch-free, since the pipeline's checks count as well."""

from fractions import Fraction
from math import ceil


def count_selected(quantile: float, tokens: int) -> int:
    """`k = ceil(quantile * N)`, exact for decimal quantiles.

    In binary floating point 0.1 * 30 exceeds 3, and its ceiling would be 4.
    """
    return ceil(Fraction(str(quantile)) * tokens)
