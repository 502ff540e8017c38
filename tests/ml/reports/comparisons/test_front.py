"""The front of several studies: who is dominated, who is on every front, and intervals like those of the reports."""

import json
from pathlib import Path

import polars as pl
import pytest

from tests.support.compared_studies import run_comparison, write_study
from tokenuq_ml.tables.parquet import write_table

FAMILIES = {"mle": (1.0, 2.0), "better": (0.8, 1.8), "far": (1.2, 1.5), "worse": (1.3, 2.3)}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two studies; `far` loses on both fronts of the second one."""
    folder = tmp_path_factory.mktemp("front")
    first = write_study(folder / "first", "first", FAMILIES)
    second = write_study(folder / "second", "second", {**FAMILIES, "far": (1.2, 1.9)})
    return *run_comparison(folder, [first, second], "front"), first


def rows(folder, study):
    return {row["family"]: row for row in json.loads((folder / "front.json").read_text()) if row["study"] == study}


def test_a_family_is_dominated_by_those_that_are_better_in_both_directions(page):
    _, folder, _, _ = page
    first, second = rows(folder, "first"), rows(folder, "second")
    assert [name for name, row in first.items() if row["on_front"]] == ["better", "far"]
    assert first["mle"]["dominated_by"] == "better" and first["worse"]["dominated_by"] == "mle better far"
    assert [name for name, row in second.items() if row["on_front"]] == ["better"]
    assert second["far"]["dominated_by"] == "better"
    assert [name for name, row in first.items() if row["on_front_of_means"]] == ["better", "far"]


def test_the_verdict_names_who_is_on_every_front_and_who_gains_at_no_loss(page):
    result, _, lines, _ = page
    assert result.metrics["on_every_front"] == "better" and result.metrics["studies"] == 2
    verdict = result.metrics["verdict"]
    assert verdict.startswith("On all 2 fronts: better; mle is not. By means alone: better.")
    assert "Better than mle in distribution at no loss out of distribution: better (2)." in verdict
    assert lines == [f"page: {verdict}"]


def test_differences_are_those_of_the_studys_report(page):
    _, folder, _, (_, _, inputs) = page
    report = json.loads(Path(inputs["first/ablation_report"], "family_table.json").read_text())
    for row in report:
        if row["difference"] is not None:
            prefix = "" if row["split"] == "test" else "ood_"
            own = rows(folder, "first")[row["family"]]
            found = [own[f"{prefix}{key}"] for key in ("change", "low", "high")]
            assert found == [row["difference"], row["difference_low"], row["difference_high"]]


def test_noise_leaves_everything_on_the_front(tmp_path):
    study = write_study(tmp_path / "noisy", "noisy", {"mle": (1.0, 2.0), "other": (0.99, 1.99)}, noise=3.0)
    result, folder, _ = run_comparison(tmp_path, [study], "front")
    assert result.metrics["on_every_front"] == "mle other"
    assert sum(row["on_front_of_means"] for row in rows(folder, "noisy").values()) in (1, 2)
    assert {row["verdict"] for row in rows(folder, "noisy").values()} == {"same"}


def test_divergence_from_the_truth_takes_the_place_of_the_loss_where_it_is_known(tmp_path):
    known = write_study(tmp_path / "known", "known", FAMILIES, metrics=("loss", "true_kl"))
    other = write_study(tmp_path / "other", "other", FAMILIES)
    _, folder, _ = run_comparison(tmp_path, [known, other], "front")
    found = pl.read_parquet(folder / "front.parquet")
    assert found.group_by("study").agg(pl.col("metric").unique()).sort("study")["metric"].to_list() == [
        ["true_kl"],
        ["loss"],
    ]


def test_benchmarks_have_planes_of_their_own_where_more_is_better(tmp_path):
    study = write_study(
        tmp_path / "s", "s", {"mle": (0.5, 0.5), "top": (0.7, 0.7)}, metrics=("loss", "exact_match_flexible")
    )
    result, folder, _ = run_comparison(tmp_path, [study], "front")
    found = pl.read_csv(folder / "front.csv")
    # GSM8K out of distribution is no benchmark of any shipped study; what counts here is the direction.
    benchmark = found.filter(metric="exact_match_flexible", family="top").row(0, named=True)
    loss = found.filter(metric="loss", family="top").row(0, named=True)
    assert (benchmark["verdict"], benchmark["on_front"]) == ("better", True)
    assert (loss["verdict"], loss["dominated_by"]) == ("worse", "mle")
    assert result.metrics["on_every_front"] == "mle" and (folder / "front_benchmarks.png").is_file()


def test_a_family_that_lacks_a_metric_is_left_out_of_its_planes_only(tmp_path):
    study, ablations, inputs = write_study(tmp_path / "s", "s", FAMILIES, metrics=("loss", "true_kl"))
    table = Path(inputs["s/ablation_report"], "family_table.json")
    kept = [row for row in json.loads(table.read_text()) if (row["family"], row["metric"]) != ("far", "true_kl")]
    table.write_text(json.dumps(kept))
    path = Path(inputs["s/evaluation_examples/far_s1"])
    frame = pl.read_parquet(path / "*.parquet", hive_partitioning=False).filter(pl.col("metric") != "true_kl")
    write_table(frame, "evaluation_examples", path, spec_hash="s", code_version="1-s")
    result, folder, _ = run_comparison(tmp_path, [(study, ablations, inputs)], "front")
    assert list(rows(folder, "s")) == ["mle", "better", "worse"] and result.metrics["on_every_front"] == "better"


def test_both_pages_have_the_same_tables_and_the_version_follows_the_content(page, tmp_path):
    result, folder, _, first = page
    html, markdown = (folder / "comparison.html").read_text(), (folder / "comparison.md").read_text()
    cells = [cell.strip() for line in markdown.splitlines() if line.startswith("| ") for cell in line.split("|")[1:-1]]
    assert len(cells) > 60 and all(cell in html for cell in cells if cell != "---")
    assert "data:image/png" in html and "](front.png)" in markdown
    again, _, _ = run_comparison(tmp_path / "again", [first], "front")
    same, _, _ = run_comparison(tmp_path / "same", [first], "front")
    assert again.data_version == same.data_version != result.data_version
    other = write_study(tmp_path / "changed", "first", {**FAMILIES, "worse": (1.31, 2.3)})
    changed, _, _ = run_comparison(tmp_path / "new", [other], "front")
    assert changed.data_version != again.data_version
