"""How often a rule is right in cells that it was not fitted on, next to the choice that is right in most cells.

The rule is fitted without the cells that it is asked about; the majority is that of all cells, which favours it. A
majority without them would favour the rule: where two choices are right about equally often, what is right in a cell
that is left out is in the minority of the others.
"""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from tokenuq_ml.advice.rule import Cell, Rule, constant_rule, fitted_rule

Group = Callable[[Cell], object]
"""What cells that are left out together have in common."""


class HeldOut(NamedTuple):
    """Right answers of the rule, fitted without the cells that it is asked about, and of the majority of all cells."""

    left_out: str
    """What a fold leaves out: `cell`, or a knob, of which all cells with one value are left out."""
    folds: int
    cells: int
    right: int
    majority_right: int
    only_rule: int
    """Cells in which the rule alone is right."""
    only_majority: int
    gain: float
    """Mean gain of the rule's choices."""
    majority_gain: float
    best_gain: float
    """Mean gain of the best choice in each cell, which no rule can know."""

    @property
    def p_value(self) -> float:
        """Two-sided exact sign test (McNemar 1947) of the cells in which one of both alone is right."""
        differing, fewer = self.only_rule + self.only_majority, min(self.only_rule, self.only_majority)
        tail = sum(math.comb(differing, count) for count in range(fewer + 1))
        return min(1.0, 2 * tail / 2**differing)


def held_out_results(cells: Sequence[Cell], choices: Sequence[str], quantities: Collection[str]) -> list[HeldOut]:
    """Return the results of leaving out each cell, and each value of each knob.

    The choice of the quantity is part of each fit. A knob that has one value only, or that a cell lacks, is not left
    out.

    Args:
        cells: at least two.
        choices: what a rule may choose.
        quantities: what a rule may read. Those that are undefined in a cell are left out.
    """
    quantities = defined_everywhere(cells, quantities)
    knobs = [knob for knob in cells[0].knobs if all(knob in cell.knobs for cell in cells)] if cells else []
    groupings: list[tuple[str, Group]] = [("cell", attrgetter("study"))]
    groupings += [(knob, partial(_knob, knob)) for knob in knobs]
    return [
        _result(name, cells, choices, quantities, group)
        for name, group in groupings
        if len({group(cell) for cell in cells}) > 1
    ]


def defined_everywhere(cells: Sequence[Cell], quantities: Collection[str]) -> list[str]:
    """Return the quantities that are defined in every cell."""
    return [name for name in quantities if all(cell.quantities.get(name) is not None for cell in cells)]


def is_better(results: Sequence[HeldOut]) -> bool:
    """Return whether the rule beats the majority when cells are left out, and is no worse when rows or columns are."""
    if not results:
        return False
    by_cell, *by_knob = results
    return by_cell.right > by_cell.majority_right and all(one.right >= one.majority_right for one in by_knob)


def _knob(knob: str, cell: Cell) -> float:
    return cell.knobs[knob]


def _result(
    name: str,
    cells: Sequence[Cell],
    choices: Sequence[str],
    quantities: Collection[str],
    group: Group,
) -> HeldOut:
    asked: list[tuple[Cell, Rule]] = []
    majority = constant_rule(cells, choices).above
    groups = dict.fromkeys(group(cell) for cell in cells)
    for left_out in groups:
        rest = [cell for cell in cells if group(cell) != left_out]
        rule = fitted_rule(rest, choices, quantities)
        asked += [(cell, rule) for cell in cells if group(cell) == left_out]
    chosen = [(cell, rule.choice(cell.quantities)) for cell, rule in asked]
    right = [(choice in cell.right, majority in cell.right) for cell, choice in chosen]
    return HeldOut(
        name,
        folds=len(groups),
        cells=len(cells),
        right=sum(first for first, _ in right),
        majority_right=sum(second for _, second in right),
        only_rule=sum(first and not second for first, second in right),
        only_majority=sum(second and not first for first, second in right),
        gain=sum(cell.gains[choice] for cell, choice in chosen) / len(cells),
        majority_gain=sum(cell.gains[majority] for cell in cells) / len(cells),
        best_gain=sum(max(cell.gains.values()) for cell in cells) / len(cells),
    )
