"""`tokenuq advise`: its text and JSON, measured studies of a comparison in the store, and its errors."""

import json

import polars as pl
import pytest

from tests.support import manifests, tiny_tables
from tests.support.measured_studies import READ, grid
from tokenuq_ml.advice import measured
from tokenuq_ml.advice.measured import GOALS, MEASURED, read_measured, write_measured
from tokenuq_ml.advice.quantities import study_quantities
from tokenuq_ml.tables.parquet import write_table
from tokenuq_pipeline.cli import main
from tokenuq_pipeline.commands.advise import GOAL_NAMES
from tokenuq_pipeline.runtime.manifest import Manifest
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import comparison_path

pytestmark = pytest.mark.slow

TABLES = ("token_losses", "token_uncertainty")
COMPARISONS = "both:\n  kind: front\n  studies: [quickstart]\n"


def write_tables(home):
    """Write the token tables of the study `quickstart`."""
    for table, frame in zip(TABLES, tiny_tables.losses_and_uncertainty(), strict=True):
        ranked = frame.with_columns(rank=pl.int_range(pl.len()) % 3) if table == "token_losses" else frame
        write_table(ranked, table, home / table / "study=quickstart", spec_hash="s", code_version="c")
    return home


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("store"))


@pytest.fixture
def advise(store, tmp_path, monkeypatch, capsys):
    """Run the command where the grid is what ships, and the study has the quantity of noise 0.24."""
    value = study_quantities(store, "quickstart")[READ].value
    write_measured(grid().with_columns((pl.col(READ) * value / 0.24).alias(READ)), tmp_path / "phase_cells.csv")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "comparisons.yaml").write_text(COMPARISONS)
    monkeypatch.setattr(measured, "SHIPPED", tmp_path)
    monkeypatch.setenv("TOKENUQ_HOME", str(store))
    monkeypatch.setenv("TOKENUQ_CONFIG", str(tmp_path / "config"))

    def run(*arguments):
        code = main(["advise", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_the_advice_comes_with_its_evidence(advise):
    code, out, _ = advise("--study", "quickstart")
    lines = out.splitlines()
    # The threshold is that of noise 0.25.
    assert code == 0 and lines[0].startswith(
        "quickstart: train with mle, to lower the loss in distribution and not raise it out of "
    )
    assert lines[1].startswith(f"rule, from 20 measured studies: gentle if {READ} is above ")
    assert "the interval contains the threshold" in lines[3]
    assert "each cell   20     20 of 20    12 of 20" in out and "each noise" in out and "each zipf" in out
    assert "(noise 0.2, zipf 0.5)" in out and "Other studies" not in out
    assert "in distribution (--goal out_of_distribution): train with mle" in out


def test_a_rule_that_is_no_better_is_said_plainly(advise):
    code, out, _ = advise("--study", "quickstart", "--goal", "out_of_distribution")
    second = out.splitlines()[1]
    assert code == 0 and second.startswith("no rule is better than the same answer for all data: mle is right in ")
    assert "no threshold on any quantity is right in more" in second


def test_without_a_study_the_rule_and_its_evidence(advise):
    code, out, _ = advise()
    lines = out.splitlines()
    assert code == 0 and lines[0] == "to lower the loss in distribution and not raise it out of distribution:"
    assert lines[1].startswith(f"rule, from 20 measured studies: gentle if {READ} is above")
    assert "each noise" in out and "Nearest" not in out and "Quantities" not in out
    assert next(line for line in lines if line.startswith("  gentle ")).endswith("20 of 20    12 of 20        yes")


def test_json_has_the_same(advise):
    code, out, _ = advise("--study", "quickstart", "--format", "json")
    found = json.loads(out)
    assert code == 0 and (found["study"], found["advice"], found["goal"]) == ("quickstart", "mle", "in_distribution")
    assert found["evidence"]["rule"]["quantity"] == READ and found["evidence"]["rule_is_better"]
    assert [one["left_out"] for one in found["evidence"]["held_out"]] == ["cell", "noise", "zipf"]
    assert found["quantities"][READ]["low"] <= found["quantities"][READ]["value"] <= found["quantities"][READ]["high"]
    assert len(found["evidence"]["nearest"]) == 3 and {one["family"] for one in found["evidence"]["objectives"]} == {
        "gentle",
        "reckless",
    }


def test_real_studies_are_quoted(advise, tmp_path):
    write_measured(
        grid().head(2).with_columns(study=pl.lit("real"), noise=None, zipf=None), tmp_path / "study_cases.csv"
    )
    _, out, _ = advise("--study", "quickstart")
    quoted = out.partition("Other studies")[2]
    assert "the advice is right in 1 of 1" in quoted and "real: advice mle; right mle" in quoted


def test_without_measured_studies_the_quantities_are_printed(advise, tmp_path):
    (tmp_path / "phase_cells.csv").unlink()
    code, out, _ = advise("--study", "quickstart")
    assert code == 0 and "no advice, because a rule needs 4 measured studies and there are 0" in out and READ in out
    _, out, _ = advise("--study", "quickstart", "--format", "json")
    assert json.loads(out)["advice"] is None and READ in json.loads(out)["quantities"]


def complete(home, asset: str, output: str, place: str) -> None:
    """Write the manifest of an asset with one output."""
    fields = {"data_version": "v", "code_version": "1", "spec_hash": "s", "fields": {}, "metrics": {}}
    made = Manifest(asset=asset, outputs={output: place}, input_data_versions={}, files=[], **fields)
    manifests.complete(Store(home), made)


def publish_front(home, baseline_change: float = 0.0) -> None:
    """Make the comparison `both` complete in the store."""
    rows = [
        {"study": "quickstart", "family": family, "seeds": 3, "metric": "loss", "change": change, "low": change - 0.1}
        | {"high": change + 0.1, "ood_change": 0.0, "ood_low": -0.1, "ood_high": 0.1}
        for family, change in (("mle", baseline_change), ("new", -0.5))
    ]
    folder = home / comparison_path("both")
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(folder / "front.parquet")
    complete(home, "comparisons/both", "comparison", comparison_path("both"))


def test_a_comparison_gives_a_file_of_measured_studies(advise, tmp_path, monkeypatch):
    home, file = write_tables(tmp_path / "own"), tmp_path / "cases.csv"
    monkeypatch.setenv("TOKENUQ_HOME", str(home))
    code, _, error = advise("--comparison", "both", "--output", file)
    assert code == 2 and "comparisons/both: was never made; run `tokenuq run --comparison both`" in error
    for table in TABLES:
        complete(home, f"quickstart/{table}", table, f"{table}/study=quickstart")
    publish_front(home)
    code, out, _ = advise("--comparison", "both", "--output", file)
    assert code == 0 and out == f"{file}: 1 study, 1 row\n"
    (row,) = read_measured(file).rows(named=True)
    assert list(row) == list(MEASURED) and (row["study"], row["family"], row["change"]) == ("quickstart", "new", -0.5)
    assert row[READ] == pytest.approx(study_quantities(home, "quickstart", None)[READ].value, rel=1e-5)
    code, _, error = advise("--comparison", "both", "--output", home / "cases.csv")
    assert code == 2 and "is in the store" in error
    publish_front(home, 0.5)
    code, _, error = advise("--comparison", "both", "--output", file)
    assert code == 2 and "is compared with another baseline than mle" in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--study", "nowhere"], "no study 'nowhere'; there are quickstart"),
        (["--study", "ground_truth"], "study 'ground_truth' has no table token_losses"),
        (["--study", "phase"], "phase has a grid; name one of its 25 studies"),
        (["--study", "quickstart", "--comparison", "none"], "no comparison 'none'; there are "),
        (["--study", "quickstart", "--output", "x.csv"], "--output goes with --comparison, and not with --study"),
        (["--output", "x.csv"], "--output goes with --comparison"),
        (["--comparison", "both", "--output", "x.txt"], "name a file that ends in .csv"),
        (["--comparison", "both", "--output", "/nowhere/x.csv"], "there is no folder /nowhere"),
    ],
)
def test_errors_are_one_sentence(advise, arguments, message):
    code, out, error = advise(*arguments)
    assert code == 2 and not out and message in error and "Traceback" not in error


def test_goals_of_the_parser_are_those_of_the_advice():
    assert GOAL_NAMES == tuple(GOALS)
