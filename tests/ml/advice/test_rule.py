"""A rule fitted on cells, its results on cells that are left out, and ties."""

import pytest

from tokenuq_ml.advice.held_out import HeldOut, held_out_results, is_better
from tokenuq_ml.advice.rule import Cell, Rule, constant_rule, fitted_rule

CHOICES = ("mle", "new", "other")


def cell(number: int, right: str, gain: float = 1.0, row: int = 0, **quantities: float | None) -> Cell:
    gains = {choice: gain if choice == right else 0.0 for choice in CHOICES}
    return Cell(f"cell{number}", {"row": row}, {"x": float(number), **quantities}, frozenset({right}), gains)


def cells(rights: str, **quantities) -> list[Cell]:
    """Cells 0, 1, ... by the first letter of what is right there."""
    names = {choice[0]: choice for choice in CHOICES}
    return [cell(number, names[letter], **quantities) for number, letter in enumerate(rights)]


def test_the_threshold_is_in_the_middle_of_the_gap():
    rule = fitted_rule(cells("mmmnn"), CHOICES, ["x"])
    assert rule == Rule("mle", "new", "x", 2.5)
    assert [rule.choice({"x": value}) for value in (2.5, 2.6, -9.0)] == ["mle", "new", "mle"]
    assert str(rule) == "new if x is above 2.5, otherwise mle"


def test_the_quantity_that_separates_is_found():
    some = [
        cell(number, right, y=y) for number, (right, y) in enumerate([("mle", 3), ("new", 1), ("mle", 4), ("new", 0)])
    ]
    assert fitted_rule(some, CHOICES, ["x", "y"]) == Rule("new", "mle", "y", 2.0)


def test_a_rule_that_is_right_no_more_often_than_a_constant_is_the_constant():
    assert fitted_rule(cells("mmmmm"), CHOICES, ["x"]) == Rule("mle", "mle")
    # Right in 3 of 5 with any threshold, as always `mle` is.
    alternating = [cell(number, right, x=0.0) for number, right in enumerate(["mle", "new", "mle", "new", "mle"])]
    assert fitted_rule(alternating, CHOICES, ["x"]) == Rule("mle", "mle")
    assert str(Rule("mle", "mle")) == "always mle"


def test_equal_rules_differ_by_gain_then_by_margin():
    # Of two objectives that are right in the same cells, the one that gains more.
    both = [
        Cell(f"c{x}", {}, {"x": x}, frozenset({"mle"} if x < 2 else {"new", "other"}), {"mle": 0, "new": 1, "other": 2})
        for x in range(4)
    ]
    assert fitted_rule(both, CHOICES, ["x"]).above == "other"
    # Of two quantities that separate as well, the one with the wider gap for its spread.
    wide = [cell(number, "new" if number > 1 else "mle", y=float(number > 1)) for number in range(4)]
    assert fitted_rule(wide, CHOICES, ["x", "y"]).quantity == "y"


def test_a_constant_counts_right_answers_before_gains():
    some = [*cells("mmn"), cell(3, "new", gain=100.0), cell(4, "mle")]
    assert constant_rule(some, CHOICES).above == "mle"
    tied = [*cells("mn"), cell(2, "other", gain=5.0)]
    assert constant_rule(tied, CHOICES).above == "other"
    assert constant_rule(cells("mn"), CHOICES).above == "mle"


def test_what_is_undefined_is_not_read():
    assert fitted_rule(cells("mmnn", y=None), CHOICES, ["y"]).quantity is None
    with pytest.raises(ValueError, match="x is undefined"):
        Rule("mle", "new", "x", 1.0).choice({"x": None})
    with pytest.raises(ValueError, match="needs cells"):
        fitted_rule([], CHOICES, ["x"])


def test_leaving_out_cells_and_knobs_by_hand():
    # Two rows of four cells: `new` is right above 1.5 in both.
    grid = [cell(number, "new" if number > 1 else "mle", row=row) for row in (0, 1) for number in range(4)]
    grid = [
        one.__class__(f"{one.study}_{row}", *list(vars(one).values())[1:])
        for row, one in zip([0] * 4 + [1] * 4, grid, strict=True)
    ]
    by_cell, by_row = held_out_results(grid, CHOICES, ["x"])
    assert (by_cell.left_out, by_cell.folds, by_cell.cells, by_cell.right) == ("cell", 8, 8, 8)
    # The majority is that of all cells, half of which it gets right.
    assert by_cell.majority_right == 4 and (by_cell.only_rule, by_cell.only_majority) == (4, 0)
    assert (by_row.left_out, by_row.folds, by_row.right, by_row.majority_right) == ("row", 2, 8, 4)
    assert by_row.gain == 1 and by_row.majority_gain == 0.5 and by_row.best_gain == 1
    assert is_better([by_cell, by_row])


def test_a_pattern_by_chance_does_not_hold_on_cells_that_are_left_out():
    (by_cell,) = held_out_results(
        [Cell(one.study, {}, one.quantities, one.right, one.gains) for one in cells("mmnmmnmm")], CHOICES, ["x"]
    )
    assert by_cell.majority_right == 6 and by_cell.right <= 6 and not is_better([by_cell])


def test_a_knob_with_one_value_is_not_left_out():
    assert [one.left_out for one in held_out_results(cells("mmnn"), CHOICES, ["x"])] == ["cell"]


@pytest.mark.parametrize("alone, p", [((0, 0), 1.0), ((5, 0), 0.0625), ((8, 2), 0.109375), ((3, 3), 1.0)])
def test_the_sign_test(alone, p):
    counts = HeldOut("cell", 9, 9, 0, 0, *alone, 0.0, 0.0, 0.0)
    assert counts.p_value == pytest.approx(p)


def test_a_rule_that_fails_on_rows_is_not_better():
    better, worse = (HeldOut("x", 9, 9, right, 5, 0, 0, 0.0, 0.0, 0.0) for right in (7, 4))
    assert is_better([better, better]) and not is_better([better, worse]) and not is_better([worse, better])
    assert not is_better([])
