"""Where on a grid a set of cells is, in words: the simplest bounds on noise and rarity that hold these cells only."""

from collections.abc import Collection
from itertools import product

Cell = tuple[float, float]
"""Noise and exponent of Zipf's law."""


def region(cells: Collection[Cell], grid: Collection[Cell]) -> str | None:
    """Return bounds that hold for these cells of a grid, and for no other; None if there are none.

    `everywhere` if the cells are all of the grid. Fewer bounds are preferred.

    Args:
        cells: some of the grid's.
        grid: all of them.
    """
    wanted, every = set(cells), set(grid)
    if not wanted:
        return None
    if wanted == every:
        return "everywhere"
    ranges = [_ranges(sorted({cell[axis] for cell in every})) for axis in (0, 1)]
    for noise, zipf in sorted(
        product(*ranges), key=lambda pair: sum(bound is not None for one in pair for bound in one)
    ):
        if {cell for cell in every if _holds(cell[0], noise) and _holds(cell[1], zipf)} == wanted:
            return " and ".join(filter(None, (_text("noise", noise), _text("zipf", zipf))))
    return None


Range = tuple[float | None, float | None]


def _ranges(values: list[float]) -> list[Range]:
    """Return all ranges of consecutive values; the first and the last value need no bound."""
    lows, highs = [None, *values[1:]], [*values[:-1], None]
    return [(low, high) for low, high in product(lows, highs) if low is None or high is None or low <= high]


def _holds(value: float, bounds: Range) -> bool:
    low, high = bounds
    return (low is None or value >= low) and (high is None or value <= high)


def _text(name: str, bounds: Range) -> str:
    low, high = bounds
    if low is not None and low == high:
        return f"{name} {low:g}"
    if low is not None and high is not None:
        return f"{name} {low:g} to {high:g}"
    if low is not None:
        return f"{name} from {low:g}"
    return f"{name} up to {high:g}" if high is not None else ""
