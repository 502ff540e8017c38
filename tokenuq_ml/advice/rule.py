"""A rule of thumb from the quantities of measured studies to a choice: a threshold on one quantity, or a constant.

A rule is fitted by trying every threshold of every quantity, which for the few dozen cells of a phase diagram is exact
and instant. A library's decision tree of depth one (scikit-learn is not a dependency) would count one label per cell as
right. Here several objectives may be right in a cell, and which of them gains how much decides between equal rules.
Does not import torch.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tokenuq_ml.scoring.correlations import Array

GAIN_DIGITS = 9
"""Decimals to which gains are compared, so that sums in another order are equal."""


@dataclass(frozen=True)
class Cell:
    """A measured study: its quantities, and which choices were right there."""

    study: str
    knobs: Mapping[str, float]
    """What makes it a cell of a grid: `noise`, `zipf`. Empty for other studies."""
    quantities: Mapping[str, float | None]
    right: frozenset[str]
    """The choices that were right."""
    gains: Mapping[str, float]
    """Choice -> by how much it beat the baseline in distribution; at most 0 for wrong choices."""


@dataclass(frozen=True)
class Rule:
    """`above` where the quantity exceeds the threshold, else `below`. A constant has no quantity."""

    below: str
    above: str
    quantity: str | None = None
    threshold: float = 0.0

    def choice(self, quantities: Mapping[str, float | None]) -> str:
        """Return what the rule chooses.

        Raises:
            ValueError: its quantity is undefined.
        """
        if self.quantity is None:
            return self.above
        value = quantities[self.quantity]
        if value is None:
            raise ValueError(f"{self.quantity} is undefined")
        return self.above if value > self.threshold else self.below

    def __str__(self) -> str:
        if self.quantity is None:
            return f"always {self.above}"
        return f"{self.above} if {self.quantity} is above {self.threshold:.4g}, otherwise {self.below}"


class _Score(NamedTuple):
    """How good a rule is: the number of cells in which it is right decides, then its gains, then its margin."""

    right: int
    gain: float
    margin: float


def constant_rule(cells: Sequence[Cell], choices: Sequence[str]) -> Rule:
    """Return the choice that is right in most cells; of equal ones, that with the largest gain, then the first."""
    right_CL, gain_CL = _scores(cells, choices)
    best = _best_choice(right_CL.sum(0), gain_CL.sum(0))
    return Rule(choices[best], choices[best])


def fitted_rule(cells: Sequence[Cell], choices: Sequence[str], quantities: Collection[str]) -> Rule:
    """Return the threshold that is right in most cells; the constant if none is right in more cells than that.

    Of equal thresholds, that with the largest gain is taken, then that with the widest gap between the cells on its
    sides, in standard deviations of the quantity. A threshold is in the middle of that gap.

    Args:
        cells: what it is fitted on.
        choices: what it may choose.
        quantities: what it may read. Those that are undefined in a cell are left out.

    Raises:
        ValueError: there is no cell or no choice.
    """
    if not cells or not choices:
        raise ValueError("a rule needs cells and choices")
    constant = constant_rule(cells, choices)
    right_CL, gain_CL = _scores(cells, choices)
    floor = sum(constant.above in cell.right for cell in cells)
    best, score = constant, _Score(floor, np.inf, np.inf)
    for quantity in quantities:
        values = [cell.quantities[quantity] for cell in cells]
        if any(value is None for value in values):
            continue
        for rule, found in _thresholds(quantity, np.array(values, np.float64), right_CL, gain_CL, choices):
            if found > score:
                best, score = rule, found
    return best


def _scores(cells: Sequence[Cell], choices: Sequence[str]) -> tuple[Array, Array]:
    """Return whether each choice is right in each cell, and its gain there, both `[cells, choices]`."""
    right = [[float(choice in cell.right) for choice in choices] for cell in cells]
    return np.array(right), np.array([[cell.gains[choice] for choice in choices] for cell in cells])


def _best_choice(right_L: Array, gain_L: Array) -> int:
    """Return the choice that is right most often; of equal ones, that with the largest gain, then the first."""
    return max(range(len(right_L)), key=lambda choice: (right_L[choice], gain_L[choice], -choice))


def _thresholds(
    quantity: str, values_C: Array, right_CL: Array, gain_CL: Array, choices: Sequence[str]
) -> list[tuple[Rule, _Score]]:
    """Return the best rule at each threshold between two cells, with its score."""
    order, spread = np.argsort(values_C, kind="stable"), values_C.std()
    values_C = values_C[order]
    right_below_CL, gain_below_CL = right_CL[order].cumsum(0), gain_CL[order].cumsum(0)
    right_above_CL, gain_above_CL = right_below_CL[-1] - right_below_CL, gain_below_CL[-1] - gain_below_CL
    found = []
    for last, gap in enumerate(np.diff(values_C)):
        if gap <= 0:
            continue
        below = _best_choice(right_below_CL[last], gain_below_CL[last])
        above = _best_choice(right_above_CL[last], gain_above_CL[last])
        if below == above:
            continue
        rule = Rule(choices[below], choices[above], quantity, float(values_C[last] + gap / 2))
        right = right_below_CL[last, below] + right_above_CL[last, above]
        gain = gain_below_CL[last, below] + gain_above_CL[last, above]
        found.append((rule, _Score(int(right), round(float(gain), GAIN_DIGITS), float(gap / spread))))
    return found
