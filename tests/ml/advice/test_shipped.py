"""The measured studies that ship: their shape, and that the rule follows from them."""

import polars as pl
import pytest

from tokenuq_ml.advice.advice import FEWEST_CELLS, advice, rule_of
from tokenuq_ml.advice.measured import (
    BASELINE,
    CASES_FILE,
    CELLS_FILE,
    GOALS,
    KNOBS,
    MEASURED,
    SHIPPED,
    cells_of,
    read_measured,
    write_measured,
)
from tokenuq_ml.advice.quantities import QUANTITIES

FILES = {name: read_measured(SHIPPED / name) for name in (CELLS_FILE, CASES_FILE)}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_the_command_writes(name, tmp_path):
    table = FILES[name]
    assert table.schema == MEASURED and not table.select("study", "family").is_duplicated().any()
    for side in ("change", "ood_change"):
        ordered = (pl.col(f"{side}_low") <= pl.col(side)) & (pl.col(side) <= pl.col(f"{side}_high"))
        assert table.select(ordered.all()).item()
    assert BASELINE not in table["family"] and table.select((pl.col("seeds") > 0).all()).item()
    if (SHIPPED / name).exists():
        write_measured(table, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_cells_have_their_knobs_and_one_set_of_quantities_each():
    cells = FILES[CELLS_FILE]
    assert not cells.select(pl.col(*KNOBS).is_null().any()).row(0).count(True)
    assert cells.select("study", *KNOBS, *QUANTITIES).n_unique() == cells["study"].n_unique()
    assert FILES[CASES_FILE].select(pl.col(*KNOBS).is_null().all()).row(0) == (True, True)
    assert not set(cells["study"]) & set(FILES[CASES_FILE]["study"])


@pytest.mark.parametrize("goal", GOALS.values(), ids=list(GOALS))
def test_the_rule_is_what_the_cells_give(goal):
    cells = FILES[CELLS_FILE]
    found = advice(cells, FILES[CASES_FILE], goal)
    if cells["study"].n_unique() < FEWEST_CELLS:
        assert found is None
        return
    # In any order of the rows, and by counting again.
    assert rule_of(cells.reverse(), goal).rule == found.fitted.rule
    of_goal = cells_of(cells, goal)
    right = sum(found.fitted.rule.choice(cell.quantities) in cell.right for cell in of_goal)
    assert right >= found.fitted.majority_right == sum(found.fitted.majority.above in one.right for one in of_goal)
