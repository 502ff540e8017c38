"""The section about a known truth: every score with its numbers, and the plots at the values of the table."""

import json

import numpy as np
import polars as pl
import pytest

from tests.support.pictures import leave_out_pictures
from tests.support.tiny_report import ABLATIONS, build_report
from tests.support.tiny_tables import evaluation_examples, evaluations
from tokenuq_ml.reports.truth_section import DIVERGENCE_PLOT, truth
from tokenuq_ml.scoring.truth_ranking import STATISTICS

SCORES = ("true_kl", "loss", "bald")


def ranking() -> pl.DataFrame:
    """Another value for each row; BALD has none at 0%, and one value is not defined."""
    rows = [
        (fraction, split, slot, score, statistic)
        for fraction in (0.0, 0.5, 1.0)
        for split in ("all", "test", "train")
        for slot in ("all", "fact")
        for score in SCORES
        for statistic in STATISTICS
        if not (fraction == 0 and score == "bald")
    ]
    frame = pl.DataFrame(rows, schema=["fraction", "split", "slot", "score", "statistic"], orient="row")
    frame = frame.with_columns(value=pl.Series(np.linspace(0, 1, len(frame)).round(3)), n=pl.lit(9, pl.Int32))
    frame = frame.with_columns(ci_low=pl.col("value") - 0.01, ci_high=pl.col("value") + 0.01)
    undefined = (pl.col("score") == "loss") & (pl.col("statistic") == "auroc_top_quarter") & (pl.col("fraction") == 0.5)
    return frame.with_columns(pl.when(~undefined).then(pl.col(name)) for name in ("value", "ci_low", "ci_high"))


def families() -> list[dict]:
    rows = []
    for place, family in enumerate(("base", "mle", "paper")):
        for dataset, split in (("toy", "test"), ("far", "ood")):
            value = {"value": place + 0.5, "ci_low": place + 0.4, "ci_high": place + 0.7}
            rows.append({"family": family, "dataset": dataset, "split": split, "metric": "true_kl", **value})
            rows.append({**rows[-1], "metric": "loss", "value": 9.0})
    return rows


def test_each_score_has_a_row_with_its_numbers_the_best_first(drawn, tmp_path):
    page = truth(families(), [], ranking(), tmp_path)
    last = ranking().filter(fraction=1.0, slot="all")
    for split in ("train", "test"):
        table = page[page.index(f"{split}: ") :].partition("</table>")[0]
        order = last.filter(split=split, statistic="spearman_true_kl").sort("value", descending=True)["score"].to_list()
        assert [table.index(f"<td>{score}</td>") for score in order] == sorted(
            table.index(f"<td>{score}</td>") for score in order
        )
        for row in last.filter(split=split).iter_rows(named=True):
            assert f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" in table
    assert "ood: " not in page and page.count("<details") == 2 and "<td>—</td>" in page


def test_scores_are_drawn_over_training_and_families_by_their_divergence(drawn, tmp_path):
    truth(families(), [], ranking(), tmp_path)
    plane, over_training = drawn
    assert plane.axes[0].get_xlabel() == "true_kl on test, nats per token"
    for axis, statistic in zip(over_training.axes, ("spearman_true_kl", "spearman_true_entropy"), strict=True):
        lines = {line.get_label(): line for line in axis.lines}
        assert set(lines) == {"loss", "bald"}
        rows = ranking().filter(split="train", slot="all", statistic=statistic)
        for score, line in lines.items():
            own = rows.filter(score=score).sort("fraction")
            assert line.get_xdata().tolist() == (own["fraction"] * 100).to_list()
            assert line.get_ydata().tolist() == own["value"].to_list()


def parts(place: int) -> pl.DataFrame:
    return evaluation_examples(place + 1.0)


@pytest.mark.slow
def test_the_report_of_a_study_with_a_truth_has_the_section(tmp_path, monkeypatch):
    leave_out_pictures(monkeypatch)
    changed = {"truth_ranking": ranking()}
    for place, name in enumerate(("base", "teacher", "mle", "paper_top25")):
        for table, frame in (("evaluations", evaluations(place + 1.0, 0.1)), ("evaluation_examples", parts(place))):
            of_metric = [frame.with_columns(metric=pl.lit(metric)) for metric in ("loss", "true_kl", "true_kl_fact")]
            changed[f"{table}/{name}"] = pl.concat(of_metric)
    result, known = build_report(tmp_path, {name: ABLATIONS[name] for name in ("mle", "paper_top25")}, **changed)
    page = (known / "report.html").read_text()
    assert "What is left to learn?" in page and "Divergence by slot" in page
    # Slots have a table of their own, and no place in the verdict.
    assert {row["metric"] for row in json.loads((known / "slot_table.json").read_text())} == {"true_kl_fact"}
    assert {row["metric"] for row in json.loads((known / "family_table.json").read_text())} == {"loss", "true_kl"}
    assert "true_kl" in result.metrics["verdict"] and "fact" not in result.metrics["verdict"]
    assert (known / "truth_ranking.png").is_file()
    assert result.plots["Divergence from the truth"] == "report/id_vs_ood_true_kl.png"


def test_without_data_out_of_distribution_there_is_no_empty_plane(tmp_path, monkeypatch):
    leave_out_pictures(monkeypatch)
    row = {"dataset": "toy", "metric": "true_kl", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    for splits, planes in ((("test",), 0), (("test", "ood"), 1)):
        families = [row | {"family": "mle", "split": split} for split in splits]
        folder = tmp_path / str(planes)
        assert truth(families, [], ranking(), folder).count("Divergence from the truth</figcaption>") == planes
        assert (folder / DIVERGENCE_PLOT).exists() is bool(planes)
