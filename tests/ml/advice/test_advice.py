"""Advice for a study, and its evidence."""

import polars as pl
import pytest

from tests.support.measured_studies import READ, UNREAD, ZIPFS, grid, row
from tokenuq_ml.advice.advice import NEAREST, advice, choices_of, rule_of
from tokenuq_ml.advice.measured import GOALS, MEASURED
from tokenuq_ml.advice.quantities import QUANTITIES, Measured
from tokenuq_ml.advice.rule import Rule
from tokenuq_ml.advice.verdicts import BEATS, TRADES

IN, OUT = GOALS["in_distribution"], GOALS["out_of_distribution"]
CHANGES = ("change", "change_low", "change_high")
CASES = pl.DataFrame(schema=MEASURED)


def quantities(**values: float | None) -> dict[str, Measured]:
    """Quantities of a study: 0.5 but for those that are named, each with an interval of 0.05 on both sides."""
    found = {**dict.fromkeys(QUANTITIES, 0.5), UNREAD: 1.2, **values}
    return {
        name: Measured(None, None, None) if value is None else Measured(value, value - 0.05, value + 0.05)
        for name, value in found.items()
    }


def test_the_rule_of_the_grid_is_found_and_followed():
    found = advice(grid(), CASES, IN, "mine", quantities(**{READ: 0.33}))
    assert found.fitted.rule == Rule("mle", "gentle", READ, pytest.approx(0.25)) and found.fitted.is_better
    assert found.choice == "gentle" and not found.is_uncertain and not found.outside and not found.left_out
    assert advice(grid(), CASES, IN, "mine", quantities(**{READ: 0.05})).choice == "mle"
    by_cell, by_noise, by_zipf = found.fitted.held_out
    assert (by_cell.right, by_cell.majority_right, by_cell.cells) == (20, 12, 20)
    # Without the noise of 0.2 or of 0.3, the threshold is in the middle of a wider gap.
    assert (by_noise.left_out, by_noise.right, by_zipf.left_out, by_zipf.right) == ("noise", 16, "zipf", 20)


def test_an_interval_across_the_threshold_and_values_outside_are_said():
    found = advice(grid(), CASES, IN, "mine", quantities(**{READ: 0.27, UNREAD: 9.0}))
    assert found.choice == "gentle" and found.is_uncertain and found.outside == [UNREAD]


def test_no_rule_is_better_where_one_choice_is_right_everywhere():
    found = advice(grid(threshold=9.0), CASES, IN, "mine", quantities())
    assert found.fitted.rule == Rule("mle", "mle") and not found.fitted.is_better and found.choice == "mle"
    assert advice(grid(), CASES, OUT, "mine", quantities()).choice == "mle"


def test_noise_gives_no_rule_that_is_better():
    # A chequered pattern, which follows no quantity: the best threshold on some cells fails on the others.
    number = pl.int_range(pl.len()) // 2
    better = (pl.col("family") == "gentle") & ((number // len(ZIPFS) + number % len(ZIPFS)) % 2 == 1)
    changed = (pl.when(better).then(-pl.col(name).abs()).otherwise(name).alias(name) for name in CHANGES)
    found = advice(grid(threshold=9.0).with_columns(changed), CASES, IN, "mine", quantities())
    assert {one.verdicts["beats"] for one in found.families if one.family == "gentle"} == {10}
    assert not found.fitted.is_better and found.fitted.applied == found.fitted.majority
    assert found.choice == found.fitted.majority.above


def test_a_measured_study_is_left_out_of_its_own_evidence():
    table = grid()
    name = table["study"][0]
    found = advice(table, CASES, IN, name, quantities(**{READ: 0.0}))
    assert found.left_out and found.fitted.cells == 19 and name not in [near.study for near in found.nearest]


def test_nearest_cells_by_standard_deviations():
    found = advice(grid(), CASES, IN, "mine", quantities(**{READ: 0.4, UNREAD: 1.05}))
    assert len(found.nearest) == NEAREST and found.nearest[0].study == "grid_noise0p4_zipf1"
    assert found.nearest[0].distance < found.nearest[1].distance < found.nearest[2].distance
    # What beats mle comes first.
    assert [(one["family"], one["verdict"]) for one in found.nearest[0].rows] == [
        ("gentle", BEATS),
        ("reckless", TRADES),
    ]


def test_each_family_has_its_own_rule():
    gentle, reckless = advice(grid(), CASES, IN, "mine", quantities(**{READ: 0.35})).families
    assert (gentle.family, gentle.verdicts, gentle.choice) == ("gentle", {"beats": 8, "loses": 12}, "gentle")
    assert gentle.mean_change == pytest.approx(-0.01) and gentle.fitted.is_better
    assert (reckless.mean_change, reckless.mean_ood_change) == pytest.approx((-0.2, 0.3))
    assert (reckless.verdicts, reckless.choice, reckless.fitted.rule) == ({"trades": 20}, "mle", Rule("mle", "mle"))


def test_cases_are_quoted_and_judged():
    values = {**dict.fromkeys(QUANTITIES, 0.5), READ: 0.3}
    cases = [
        row("agrees", "gentle", -0.1, **values),
        row("disagrees", "gentle", 0.1, **values),
        row("without_it", "other", -0.1, **values),
        row("undefined", "gentle", -0.1, **{**values, READ: None}),
    ]
    found = advice(grid(), pl.DataFrame(cases, schema=MEASURED), IN, "mine", quantities())
    assert {case.study: (case.choice, case.is_right) for case in found.cases} == {
        "agrees": ("gentle", True),
        "disagrees": ("gentle", False),
        "without_it": (None, None),
        "undefined": (None, None),
    }


def test_a_quantity_that_the_study_lacks_is_not_read():
    found = advice(grid(), CASES, IN, "mine", quantities(**{READ: None}))
    assert found.fitted.rule.quantity != READ and READ not in found.ranges and found.outside == []


def test_too_few_measured_studies_give_no_advice():
    assert advice(grid().head(6), CASES, IN, "mine", quantities()) is None
    assert advice(grid().head(8), CASES, IN, "mine", quantities()) is not None


def test_a_family_that_some_cells_lack_is_no_choice_of_the_rule_for_all():
    table = pl.concat([grid(), grid().head(1).with_columns(family=pl.lit("rare"))])
    assert choices_of(table) == ["mle", "gentle", "reckless"]
    assert "rare" in [one.family for one in advice(table, CASES, IN, "mine", quantities()).families]
    assert rule_of(table, IN).rule.quantity == READ


def test_without_a_study_the_rule_alone():
    found = advice(grid(), CASES, IN)
    assert found.fitted.rule.quantity == READ and found.choice is None and not found.nearest and not found.outside
    assert not found.is_uncertain and {one.choice for one in found.families} == {None}
