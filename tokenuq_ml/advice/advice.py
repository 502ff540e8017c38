"""Advice for one study: its quantities, the rule that measured studies give, and the evidence for it.

Does not import torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tokenuq_ml.advice.held_out import HeldOut, defined_everywhere, held_out_results, is_better
from tokenuq_ml.advice.measured import (
    BASELINE,
    Goal,
    cells_of,
    families_of,
    family_cells,
)
from tokenuq_ml.advice.quantities import QUANTITIES, Measured
from tokenuq_ml.advice.rule import Cell, Rule, constant_rule, fitted_rule
from tokenuq_ml.advice.verdicts import BEATS

NEAREST = 3
"""Cells that are quoted."""
FEWEST_CELLS = 4
"""Below this many measured studies no rule is fitted."""


@dataclass(frozen=True)
class FittedRule:
    """A rule, the majority that it is compared with, and how both do on studies that they were not fitted on."""

    rule: Rule
    majority: Rule
    held_out: Sequence[HeldOut]
    cells: int
    majority_right: int
    """Cells in which the majority is right."""

    @property
    def is_better(self) -> bool:
        """Whether the rule is right more often than the majority where it was not fitted."""
        return self.rule.quantity is not None and is_better(self.held_out)

    @property
    def applied(self) -> Rule:
        """What advice follows: the rule if it is better than the majority, else the majority."""
        return self.rule if self.is_better else self.majority


@dataclass(frozen=True)
class FamilyEvidence:
    """In how many measured studies a family has each verdict, and the rule for this family alone."""

    family: str
    verdicts: Mapping[str, int]
    mean_change: float
    mean_ood_change: float
    fitted: FittedRule
    choice: str | None
    """The family or `mle`, for the study that is advised; None without a study."""


@dataclass(frozen=True)
class NearCell:
    """A measured study whose quantities are close."""

    study: str
    knobs: Mapping[str, float]
    distance: float
    """Root mean square of the differences, in standard deviations over all cells."""
    rows: Sequence[Mapping[str, Any]]
    """Its families, the largest gain first, each with its `verdict`."""


@dataclass(frozen=True)
class Case:
    """A measured study of real data: what the rule would have advised there, and what was right."""

    study: str
    choice: str | None
    """None if the rule reads a quantity that the study lacks, or chooses a family that it does not have."""
    right: frozenset[str]
    rows: Sequence[Mapping[str, Any]]

    @property
    def is_right(self) -> bool | None:
        """Whether that advice was right; None if there was none."""
        return None if self.choice is None else self.choice in self.right


@dataclass(frozen=True)
class Advice:
    """What is said to a study, or of the rule alone."""

    study: str | None
    goal: Goal
    quantities: Mapping[str, Measured]
    ranges: Mapping[str, tuple[float, float]]
    """Quantity -> its smallest and largest value in the cells."""
    fitted: FittedRule
    choice: str | None
    """The objective that is advised; None without a study."""
    families: Sequence[FamilyEvidence]
    nearest: Sequence[NearCell]
    cases: Sequence[Case]
    left_out: bool
    """The study is one of the measured ones, which were read without it."""

    @property
    def outside(self) -> list[str]:
        """Quantities of the study that no cell has as small or as large: there, a rule extrapolates."""
        values = {name: _value(self.quantities[name]) for name in self.ranges if self.quantities}
        return [name for name, value in values.items() if not self.ranges[name][0] <= value <= self.ranges[name][1]]

    @property
    def is_uncertain(self) -> bool:
        """Whether the interval of the quantity that decides contains the threshold."""
        rule = self.fitted.applied
        if rule.quantity is None or not self.quantities:
            return False
        found = self.quantities[rule.quantity]
        return found.low is not None and found.high is not None and found.low <= rule.threshold < found.high


def fit(cells: Sequence[Cell], choices: Sequence[str], quantities: Sequence[str]) -> FittedRule:
    """Return the rule that cells give, with its results on cells that are left out.

    Args:
        cells: measured studies.
        choices: what it may choose; every cell has them.
        quantities: what it may read. Those that are undefined in a cell are left out.
    """
    defined, majority = defined_everywhere(cells, quantities), constant_rule(cells, choices)
    return FittedRule(
        fitted_rule(cells, choices, defined),
        majority,
        held_out_results(cells, choices, defined),
        len(cells),
        sum(majority.above in cell.right for cell in cells),
    )


def rule_of(measured: pl.DataFrame, goal: Goal, quantities: Sequence[str] = tuple(QUANTITIES)) -> FittedRule:
    """Return the rule that measured studies give, over the families that all of them have."""
    return fit(cells_of(measured, goal), choices_of(measured), quantities)


def choices_of(measured: pl.DataFrame) -> list[str]:
    """Return `mle` and the families that every measured study has."""
    studies = measured["study"].n_unique()
    counts = dict(measured.group_by("family").agg(pl.col("study").n_unique()).iter_rows())
    return [BASELINE, *(family for family in families_of(measured) if counts[family] == studies)]


def advice(
    measured: pl.DataFrame,
    cases: pl.DataFrame,
    goal: Goal,
    study: str | None = None,
    quantities: Mapping[str, Measured] | None = None,
) -> Advice | None:
    """Return the rule that measured studies give, applied to a study; None if fewer than FEWEST_CELLS are measured.

    Args:
        measured: the studies on which rules are fitted.
        cases: studies that are quoted, on which nothing is fitted.
        goal: what is wanted of an objective.
        study: the study that is advised. If it is one of the measured ones, it is left out of them. None: the rule and
            its evidence alone.
        quantities: those of the study; a rule reads no other.
    """
    others = measured.filter(pl.col("study") != study) if study else measured
    if others["study"].n_unique() < FEWEST_CELLS:
        return None
    cells, own = cells_of(others, goal), quantities or {}
    known = [name for name in defined_everywhere(cells, list(QUANTITIES)) if not own or own[name].value is not None]
    values = {name: own[name].value for name in known} if own else None
    fitted = rule_of(others, goal, known)
    return Advice(
        study,
        goal,
        own,
        {name: _range(cells, name) for name in known},
        fitted,
        None if values is None else fitted.applied.choice(values),
        [_family_evidence(others, family, goal, known, values) for family in families_of(others)],
        _nearest(others, goal, cells, values or {}),
        [_case(fitted.applied, goal, rows) for rows in _by_study(cases) if rows["study"][0] != study],
        len(others) < len(measured),
    )


def _value(found: Measured) -> float:
    return math.nan if found.value is None else found.value


def _range(cells: Sequence[Cell], name: str) -> tuple[float, float]:
    values = [value for cell in cells if (value := cell.quantities[name]) is not None]
    return min(values), max(values)


def _family_evidence(
    measured: pl.DataFrame, family: str, goal: Goal, known: Sequence[str], values: Mapping[str, float | None] | None
) -> FamilyEvidence:
    rows = measured.filter(pl.col("family") == family)
    verdicts = [goal.verdict(row) for row in rows.iter_rows(named=True)]
    fitted = fit(family_cells(measured, family, goal), [BASELINE, family], known)
    counts = {name: verdicts.count(name) for name in dict.fromkeys(sorted(verdicts))}
    change, ood_change = (float(rows[name].to_numpy().mean()) for name in ("change", "ood_change"))
    choice = None if values is None else fitted.applied.choice(values)
    return FamilyEvidence(family, counts, change, ood_change, fitted, choice)


def _nearest(
    measured: pl.DataFrame, goal: Goal, cells: Sequence[Cell], values: Mapping[str, float | None]
) -> list[NearCell]:
    """Return the NEAREST measured studies, the closest first."""
    if not values:
        return []
    names = list(values)
    of_cells = np.array([[cell.quantities[name] for name in names] for cell in cells], np.float64)
    spread = of_cells.std(0)
    apart = (of_cells - np.array([values[name] for name in names], np.float64)) / np.where(spread > 0, spread, 1.0)
    distances = np.sqrt((apart**2).mean(1))
    rows = {group["study"][0]: _rows(group, goal) for group in _by_study(measured)}
    return [
        NearCell(cells[index].study, cells[index].knobs, float(distances[index]), rows[cells[index].study])
        for index in np.argsort(distances, kind="stable")[:NEAREST]
    ]


def _case(rule: Rule, goal: Goal, rows: pl.DataFrame) -> Case:
    (cell,) = cells_of(rows, goal)
    undefined = rule.quantity is not None and cell.quantities[rule.quantity] is None
    choice = None if undefined else rule.choice(cell.quantities)
    return Case(cell.study, choice if choice in cell.gains else None, cell.right, _rows(rows, goal))


def _by_study(measured: pl.DataFrame) -> list[pl.DataFrame]:
    return measured.sort("study", "family").partition_by("study", maintain_order=True)


def _rows(rows: pl.DataFrame, goal: Goal) -> list[dict[str, Any]]:
    """Return the families of a study but the baseline, those that beat it first, then by change."""
    found: list[dict[str, Any]] = [
        {**row, "verdict": goal.verdict(row)}
        for row in rows.drop(QUANTITIES).iter_rows(named=True)
        if row["family"] != BASELINE
    ]
    return sorted(found, key=lambda row: (row["verdict"] != BEATS, goal.change(row)))
