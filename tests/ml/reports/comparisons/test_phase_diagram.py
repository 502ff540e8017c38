"""Phase diagrams: verdicts, regions in words, the seeds that are asked for, and the page of a small grid."""

import json

import numpy as np
import polars as pl
import pytest

from tests.support import tiny_tables
from tests.support.compared_studies import TOKENS, ablations_of
from tokenuq_ml.advice.measured import GOALS
from tokenuq_ml.advice.outcomes import outcomes_in
from tokenuq_ml.advice.verdicts import verdict_of
from tokenuq_ml.config import REFERENCE_ROWS, StudySpec
from tokenuq_ml.config.comparison import PhaseDiagramComparison
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import example_rows
from tokenuq_ml.evaluation.paired import Estimate
from tokenuq_ml.reports.comparisons import phase_diagram
from tokenuq_ml.reports.comparisons.inputs import ComparisonInputs
from tokenuq_ml.reports.comparisons.phase_cells import further_seeds, phase_cells
from tokenuq_ml.reports.comparisons.phase_regions import region

ROUNDS, EXAMPLES = (3, 4), 30
GRID = [(noise, zipf) for noise in (0.0, 0.2, 0.4) for zipf in (1.0, 2.0)]


def of(low, high):
    return Estimate((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("inside", "outside", "verdict"),
    [
        (of(-0.3, -0.1), of(-0.2, 0.04), "beats"),
        (of(-0.3, -0.1), of(-0.2, 0.06), "undecided"),
        (of(-0.3, -0.1), of(0.01, 0.06), "trades"),
        (of(-0.3, -0.1), of(0.01, 0.04), "beats"),
        (of(0.1, 0.3), of(-0.3, -0.1), "loses"),
        (of(-0.04, 0.3), of(-0.3, 0.4), "no gain"),
        (of(-0.2, 0.3), of(-0.3, -0.1), "undecided"),
    ],
)
def test_verdicts_need_a_gain_in_distribution_and_no_loss_out_of_it(inside, outside, verdict):
    assert verdict_of(inside, outside, margin=0.05, kept_margin=0.05) == verdict


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (GRID, "everywhere"),
        ([cell for cell in GRID if cell[0] >= 0.2], "noise from 0.2"),
        ([cell for cell in GRID if cell[1] == 1.0], "zipf up to 1"),
        ([(0.2, 1.0), (0.2, 2.0)], "noise 0.2"),
        ([(0.2, 2.0), (0.4, 2.0)], "noise from 0.2 and zipf from 2"),
        ([(0.0, 1.0), (0.4, 2.0)], None),
        ([], None),
    ],
)
def test_regions_are_bounds_that_hold_for_their_cells_only(cells, words):
    assert region(cells, GRID) == words


def write_grid(folder, changes, noise=0.005, seeds=3, metric="true_kl"):
    """A study per cell: `mle` at 1 and 2, other families at `changes[family](noise, zipf)` from it."""
    studies, ablations, paths, knobs = {}, {}, {}, {}
    rows = np.random.default_rng(3)
    for number, (rate, zipf) in enumerate(GRID):
        name = f"cell{number}"
        own = ablations_of(dict.fromkeys(["mle", *changes]), seeds=max(ROUNDS))
        of_examples, tables = np.random.default_rng(number).normal(0, 0.3, EXAMPLES), {}
        for one in own.values():
            if one.seed >= seeds:
                continue
            change = changes[one.family](rate, zipf) if one.family in changes else (0.0, 0.0)
            parts = []
            for dataset, split, mean in (("toy", "test", 1 + change[0]), ("far", "ood", 2 + change[1])):
                ids = pl.Series([f"{dataset}/{example:03d}" for example in range(EXAMPLES)])
                values = (mean + of_examples + noise * rows.normal(size=EXAMPLES)) * TOKENS
                parts.append(example_rows(dataset, split, metric, ids, values, np.full(EXAMPLES, TOKENS)))
            tables[f"evaluation_examples/{one.name}"] = pl.concat(parts)
        for row in REFERENCE_ROWS:
            tables[f"evaluation_examples/{row}"] = tables["evaluation_examples/mle"]
        tokens = pl.DataFrame({"example_id": ["a", "b"], "position": [1, 1]})
        losses = tokens.with_columns(loss=1.0, entropy=0.5, rank=pl.Series([0, 2]), split=pl.lit("train"))
        paths |= {f"{name}/{key}": path for key, path in tiny_tables.publish(folder / name, tables).items()}
        for table, frame in (
            ("token_losses", losses),
            ("token_uncertainty", tokens.with_columns(bald=0.1, predictive_entropy=0.4)),
        ):
            place = folder / name / table
            place.mkdir(parents=True)
            frame.write_parquet(place / "part-0.parquet")
            paths[f"{name}/{table}"] = str(place)
        studies[name] = StudySpec(name=name, model="tiny", dataset="toy", ood=("far",), ablations=tuple(own))
        ablations[name], knobs[name] = own, {"noise": rate, "zipf": zipf}
    spec = PhaseDiagramComparison(name="page", kind="phase_diagram", studies=tuple(studies), rounds=ROUNDS)
    made = {name: {one: a for one, a in own.items() if a.seed < seeds} for name, own in ablations.items()}
    return ComparisonInputs(spec, studies, made, ablations, paths, folder, knobs)


def test_the_page_says_where_each_family_beats_the_baseline(tmp_path):
    changes = {
        "careful": lambda noise, zipf: (-0.2 if noise >= 0.2 else 0.2, -0.1),
        "greedy": lambda noise, zipf: (-0.3, 0.5),
        "equal": lambda noise, zipf: (0.0, 0.0),
    }
    found = phase_diagram.compare(write_grid(tmp_path, changes))
    assert found.verdict == (
        "Better than mle in distribution at no loss out of it: careful in 4 of 6 cells (noise from 0.2)."
    )
    cells = {(row["noise"], row["zipf"], row["family"]): row for row in found.tables["phase_cells"]}
    assert len(cells) == len(GRID) * len(changes) and {row["seeds"] for row in cells.values()} == {3}
    assert json.loads(json.dumps(found.tables)) == found.tables
    one = cells[0.4, 1.0, "careful"]
    assert one["true_kl_change"] == pytest.approx(-0.2, abs=0.01)
    assert one["true_kl_change_low"] < one["true_kl_change"] < one["true_kl_change_high"] < 0
    assert one["baseline_true_kl"] == pytest.approx(1, abs=0.2) and one["verdict"] == "beats"
    verdicts = {family: {cells[*cell, family]["verdict"] for cell in GRID} for family in changes}
    assert verdicts == {"careful": {"beats", "loses"}, "greedy": {"trades"}, "equal": {"no gain"}}
    assert not found.further and found.metrics["undecided"] == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"phase_{name}.png" for name in sorted(changes)]
    table = found.sections[0].parts[1]
    assert table.header == ["", "zipf 1", "zipf 2"] and table.rows[0] == ["noise 0", "mle", "mle"]
    assert table.rows[2][1].startswith("careful -0.")
    teacher = found.sections[2].parts[0]
    assert teacher.rows[0][:6] == ["0", "1", "1.000", "0.500", "50.0%", "25.0%"]
    level, ood_level = map(float, teacher.rows[0][6].split(" / "))
    assert level == pytest.approx(1, abs=0.2) and ood_level == pytest.approx(level + 1, abs=0.01)


def test_advice_reads_the_table_with_the_same_verdicts(tmp_path):
    changes = {"careful": lambda noise, zipf: (-0.2 * (noise > 0), -0.1), "greedy": lambda noise, zipf: (-0.3, 0.5)}
    cells = phase_cells(write_grid(tmp_path, changes))
    pl.DataFrame([cell.row for cell in cells]).write_parquet(tmp_path / f"{phase_diagram.CELLS}.parquet")
    read = {(row["study"], row["family"]): row for row in outcomes_in(tmp_path).rows(named=True)}
    verdicts = {key: GOALS["in_distribution"].verdict(row) for key, row in read.items()}
    assert verdicts == {(cell.study, cell.family): cell.verdict for cell in cells}
    assert set(verdicts.values()) >= {"beats", "trades"}


def test_undecided_families_get_the_seeds_of_the_next_round_with_their_baseline(tmp_path):
    changes = {"careful": lambda noise, zipf: (-0.2, -0.1), "vague": lambda noise, zipf: (-0.1, 0.1)}
    inputs = write_grid(tmp_path / "three", changes, noise=0.7)
    cells = phase_cells(inputs)
    further = further_seeds(inputs, cells)
    asked = {cell.study for cell in cells if cell.verdict == "undecided"}
    assert asked and set(further) == asked
    assert set().union(*further.values()) <= {"mle_s3", "careful_s3", "vague_s3"}
    assert all("mle_s3" in names and len(names) > 1 for names in further.values())
    # After the last round nothing is asked for, whatever is undecided.
    inputs = write_grid(tmp_path / "four", changes, noise=0.7, seeds=4)
    cells = phase_cells(inputs)
    assert {cell.seeds for cell in cells} == {4} and "undecided" in {cell.verdict for cell in cells}
    assert not further_seeds(inputs, cells)


def test_seeds_of_a_round_that_was_stopped_do_not_count(tmp_path):
    inputs = write_grid(tmp_path, {"careful": lambda noise, zipf: (-0.2, -0.1)}, seeds=4)
    del inputs.ablations["cell0"]["careful_s3"]
    assert [cell.seeds for cell in phase_cells(inputs)] == [3, 4, 4, 4, 4, 4]


def test_data_without_a_known_truth_are_refused(tmp_path):
    inputs = write_grid(tmp_path, {"careful": lambda noise, zipf: (-0.2, -0.1)}, metric="loss")
    with pytest.raises(
        InputError, match=r"study cell0: mle has no true_kl on toy \(test\); a phase diagram needs data"
    ):
        phase_cells(inputs)
