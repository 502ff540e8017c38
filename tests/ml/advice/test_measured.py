"""Verdicts, cells, and the files of measured studies."""

import polars as pl
import pytest

from tests.support.measured_studies import NOISES, READ, ZIPFS, grid, row
from tokenuq_ml.advice.measured import (
    GOALS,
    MEASURED,
    cells_of,
    family_cells,
    read_measured,
    write_measured,
)
from tokenuq_ml.advice.outcomes import outcomes_in
from tokenuq_ml.advice.verdicts import BEATS, LOSES, NO_GAIN, TRADES, UNDECIDED
from tokenuq_ml.errors import InputError

IN, OUT = GOALS["in_distribution"], GOALS["out_of_distribution"]


@pytest.mark.parametrize(
    "change, ood, inside, outside",
    [
        (-0.1, 0.0, BEATS, UNDECIDED),
        (-0.1, 0.005, BEATS, UNDECIDED),
        (-0.1, -0.1, BEATS, BEATS),
        (-0.1, 0.1, TRADES, LOSES),
        (0.1, -0.1, LOSES, TRADES),
        (0.0, -0.1, UNDECIDED, BEATS),
        (0.0, 0.0, UNDECIDED, UNDECIDED),
    ],
)
def test_verdicts_by_intervals(change, ood, inside, outside):
    measured = row("s", "f", change, ood, half=0.01)
    assert (IN.verdict(measured), OUT.verdict(measured)) == (inside, outside)


def test_margins_of_a_cell_decide_what_is_no_loss_and_no_gain():
    cell = row("s", "f", -0.1, 0.005, half=0.01, margin=0.02, ood_margin=0.02)
    assert IN.verdict(cell) == BEATS and IN.verdict({**cell, "ood_margin": 0.01}) == UNDECIDED
    # Out of distribution, its interval begins above -0.02.
    assert OUT.verdict(cell) == NO_GAIN and OUT.verdict({**cell, "ood_margin": 0.004}) == UNDECIDED


def test_an_interval_that_ends_at_0_decides_nothing():
    assert IN.verdict(row("s", "f", -0.01, half=0.01)) == UNDECIDED
    assert IN.verdict(row("s", "f", 0.01, half=0.01)) == UNDECIDED


def test_cells_of_the_grid():
    cells = cells_of(grid(0.25), IN)
    assert len(cells) == len(NOISES) * len(ZIPFS)
    for cell in cells:
        noisy = cell.knobs["noise"] > 0.25
        assert cell.right == ({"gentle"} if noisy else {"mle"}) and cell.quantities[READ] == cell.knobs["noise"]
        # A wrong choice has no gain, a trade neither.
        assert cell.gains == pytest.approx({"mle": 0, "gentle": 0.1 if noisy else -0.05, "reckless": 0})
    assert {cell.right for cell in family_cells(grid(), "reckless", IN)} == {frozenset({"mle"})}


def test_a_study_that_is_no_cell_has_no_knobs():
    (cell,) = cells_of(pl.DataFrame([row("real", "f", -0.1, ood=-0.2)], schema=MEASURED), OUT)
    assert not cell.knobs and cell.right == {"f"} and cell.gains == pytest.approx({"mle": 0, "f": 0.2})


def test_a_file_is_read_as_it_was_written(tmp_path):
    file, table = tmp_path / "cells.csv", grid().with_columns(change=pl.col("change") - 1 / 3)
    write_measured(table.reverse(), file)
    read = read_measured(file)
    assert read.columns == list(MEASURED) and read["study"].to_list() == sorted(table["study"])
    assert read["change"][0] == pytest.approx(table.sort("study", "family")["change"][0], rel=1e-5)
    again = tmp_path / "again.csv"
    write_measured(read, again)
    assert again.read_bytes() == file.read_bytes()


def test_files_that_are_missing_or_odd(tmp_path):
    assert read_measured(tmp_path / "none.csv").schema == MEASURED
    odd = tmp_path / "odd.csv"
    odd.write_text("study,mood\na,b\n")
    with pytest.raises(InputError, match="other columns than this version .*mood.*make it again"):
        read_measured(odd)
    write_measured(grid().head(1), odd)
    odd.write_text(odd.read_text().replace("0.5", "half"))
    with pytest.raises(InputError, match="odd.csv: cannot be read"):
        read_measured(odd)


CELL = {
    "study": "phase_noise0p1_zipf1",
    "noise": 0.1,
    "zipf": 1.0,
    "family": "new",
    "seeds": 5,
    "true_kl_change": -0.2,
    "true_kl_change_low": -0.3,
    "true_kl_change_high": -0.1,
    "ood_true_kl_change": 0.2,
    "ood_true_kl_change_low": 0.1,
    "ood_true_kl_change_high": 0.3,
    "margin": 0.05,
    "ood_margin": 0.01,
    "verdict": "trades",
}


def test_outcomes_of_a_phase_diagram(tmp_path):
    pl.DataFrame([CELL, CELL | {"family": "mle"}]).write_parquet(tmp_path / "phase_cells.parquet")
    (found,) = outcomes_in(tmp_path).rows(named=True)
    assert found["family"] == "new" and found["metric"] == "true_kl" and IN.verdict(found) == CELL["verdict"]
    assert (found["noise"], found["zipf"], found["seeds"], found["change"]) == (0.1, 1.0, 5, -0.2)


def test_a_family_without_an_interval_is_refused(tmp_path):
    pl.DataFrame([CELL | {"true_kl_change_low": None}]).write_parquet(tmp_path / "phase_cells.parquet")
    with pytest.raises(InputError, match="new of study phase_noise0p1_zipf1 has no interval"):
        outcomes_in(tmp_path)


def front_row(family: str, change: float, ood: float, ood_dataset: str = "far", metric: str = "loss", study: str = "s"):
    numbers = {
        f"{prefix}{name}": value + step
        for prefix, value in (("", change), ("ood_", ood))
        for name, step in (("change", 0.0), ("low", -0.1 * bool(value)), ("high", 0.1 * bool(value)))
    }
    return {"study": study, "family": family, "seeds": 3, "metric": metric, "ood_dataset": ood_dataset, **numbers}


def test_outcomes_of_a_front_take_the_worst_dataset(tmp_path):
    rows = [front_row("mle", 0, 0, place) for place in ("far", "farther")]
    rows += [front_row("new", -0.5, -0.5), front_row("new", -0.5, 0.5, "farther"), front_row("new", 9, 9, metric="acc")]
    pl.DataFrame(rows).write_parquet(tmp_path / "front.parquet")
    (found,) = outcomes_in(tmp_path).rows(named=True)
    assert (found["change"], found["ood_change"], found["metric"], found["noise"]) == (-0.5, 0.5, "loss", None)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([front_row("mle", 0.5, 0.5), front_row("new", 0, 0)], "study s: is compared with another baseline than mle"),
        ([front_row("new", 0.1, 0.1)], "study s: has no plane with mle"),
    ],
)
def test_a_front_with_another_baseline_is_refused(tmp_path, rows, message):
    pl.DataFrame(rows).write_parquet(tmp_path / "front.parquet")
    with pytest.raises(InputError, match=message):
        outcomes_in(tmp_path)


def test_another_kind_of_comparison_is_refused(tmp_path):
    with pytest.raises(InputError, match="name one of kind phase_diagram or front"):
        outcomes_in(tmp_path)
