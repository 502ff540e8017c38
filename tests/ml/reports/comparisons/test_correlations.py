"""Correlations of loss and BALD over studies: against scipy and a regression of ranks, and what is refused."""

import json

import numpy as np
import polars as pl
import pytest
from scipy import stats

from tests.support import tiny_tables
from tests.support.compared_studies import run_comparison
from tokenuq_ml.config import StudySpec
from tokenuq_ml.errors import InputError


def study(folder, name, model="tiny", truth=None, losses=None, uncertainty=None):
    """A study for `run_comparison`, with its token tables; `truth` is the table `truth_ranking`."""
    made = tiny_tables.losses_and_uncertainty(seed=len(name))
    losses, uncertainty = (
        own if given is None else given for own, given in zip(made, (losses, uncertainty), strict=True)
    )
    frames = {"token_losses": losses, "token_uncertainty": uncertainty}
    frames |= {} if truth is None else {"truth_ranking": truth}
    paths = tiny_tables.publish(folder / name, frames)
    spec = StudySpec(name=name, model=model, dataset="toy", ablations=("mle",))
    return spec, {}, {f"{name}/{table}": path for table, path in paths.items()}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("correlations")
    ranking = {"fraction": [0.0, 1.0], "split": ["all"] * 2, "slot": ["all"] * 2, "score": ["loss"] * 2}
    ranking |= {"statistic": ["spearman_true_kl"] * 2, "value": [0.25, 0.75], "ci_low": [0.2, 0.7]}
    truth = pl.DataFrame({**ranking, "ci_high": [0.3, 0.8], "n": [9, 9]})
    return run_comparison(folder, [study(folder, "one"), study(folder, "other", "big", truth)], "correlations")


def rows(folder, name):
    return {row["name"]: row for row in json.loads((folder / "correlations.json").read_text()) if row["study"] == name}


def residuals(column, given):
    """What is left of some ranks after a linear regression on other ones."""
    slope = np.polyfit(given, column, 1)
    return column - np.polyval(slope, given)


def test_correlations_are_those_of_scipy_and_of_a_regression_of_ranks(page):
    _, folder, _ = page
    losses, uncertainty = tiny_tables.losses_and_uncertainty(seed=len("one"))
    loss, entropy, bald = losses["loss"], losses["entropy"], uncertainty["bald"]
    found = rows(folder, "one")
    assert found["loss with BALD"]["value"] == pytest.approx(stats.spearmanr(loss, bald)[0], abs=1e-5)
    assert found["loss with BALD (Pearson)"]["value"] == pytest.approx(stats.pearsonr(loss, bald)[0], abs=1e-5)
    of_loss, of_entropy, of_bald = (stats.rankdata(column) for column in (loss, entropy, bald))
    for name, column, given in (
        ("loss with BALD, given entropy", of_loss, of_entropy),
        ("entropy with BALD, given loss", of_entropy, of_loss),
    ):
        expected = stats.pearsonr(residuals(column, given), residuals(of_bald, given))[0]
        assert found[name]["value"] == pytest.approx(expected, abs=1e-5)


def test_the_difference_of_two_correlations_is_paired(page):
    _, folder, _ = page
    found = rows(folder, "one")
    loss, entropy = found["loss with BALD"], found["entropy with BALD"]
    difference = found["entropy with BALD minus loss with BALD"]
    assert difference["value"] == pytest.approx(entropy["value"] - loss["value"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    unpaired = np.hypot(loss["high"] - loss["low"], entropy["high"] - entropy["low"])
    assert difference["high"] - difference["low"] < unpaired


def test_the_verdict_counts_studies_and_the_truth_is_of_the_trained_teacher(page):
    result, folder, _ = page
    assert (
        "Loss with BALD: +0." in result.metrics["verdict"] and "above 0 in 2 of 2 studies" in result.metrics["verdict"]
    )
    (truth,) = json.loads((folder / "truth.json").read_text())
    assert truth == {"study": "other", "model": "big", "score": "loss", "value": 0.75, "low": 0.7, "high": 0.8}
    assert "| other | big | +0.750 [+0.700, +0.800] | — | — |" in (folder / "comparison.md").read_text()
    assert (folder / "correlations.png").stat().st_size > 1000


def test_a_split_may_be_chosen(tmp_path):
    _, folder, _ = run_comparison(tmp_path, [study(tmp_path, "one")], "correlations", split="test")
    losses, uncertainty = tiny_tables.losses_and_uncertainty(seed=len("one"))
    test = losses.join(uncertainty, on=["example_id", "position"]).filter(split="test")
    found = rows(folder, "one")["loss with BALD"]
    assert found["tokens"] == len(test)
    assert found["value"] == pytest.approx(stats.spearmanr(test["loss"], test["bald"])[0], abs=1e-5)


def test_a_constant_column_has_no_correlation(tmp_path):
    _, uncertainty = tiny_tables.losses_and_uncertainty()
    losses = tiny_tables.losses_and_uncertainty()[0].with_columns(loss=pl.lit(1.0))
    constant = study(tmp_path, "one", losses=losses, uncertainty=uncertainty)
    result, folder, _ = run_comparison(tmp_path, [constant], "correlations")
    assert rows(folder, "one")["loss with BALD"]["value"] is None
    assert "Loss with BALD: not defined in any study." in result.metrics["verdict"]


def test_tables_of_different_tokens_and_empty_splits_are_refused(tmp_path):
    losses, uncertainty = tiny_tables.losses_and_uncertainty()
    broken = study(tmp_path, "one", losses=losses, uncertainty=uncertainty.head(5))
    with pytest.raises(InputError, match="study one: 443 tokens of token_losses are not in token_uncertainty"):
        run_comparison(tmp_path / "a", [broken], "correlations")
    without = study(tmp_path, "two", losses=losses.filter(pl.col("split") != "ood"), uncertainty=uncertainty)
    with pytest.raises(InputError, match="study two: has 0 tokens of split 'ood'; set another 'split' of page"):
        run_comparison(tmp_path / "b", [without], "correlations", split="ood")


def test_teachers_of_one_study_are_summed_up(tmp_path):
    teachers = [study(tmp_path, name) for name in ("a", "bb", "ccc")]
    seeded = [
        (spec.model_copy(update={"teacher_seed": seed}), *rest)
        for seed, (spec, *rest) in zip((1000, 1001, 1002), teachers, strict=True)
    ]
    _, folder, _ = run_comparison(tmp_path, [*seeded, study(tmp_path, "other", "big")], "correlations")
    found = [rows(folder, name)["loss with BALD"] for name in ("a", "bb", "ccc")]
    values = [one["value"] for one in found]
    above, below = sum(one["low"] > 0 for one in found), sum(one["high"] < 0 for one in found)
    expected = f"{np.mean(values):+.3f} ± {np.std(values, ddof=1):.3f} ({above}, {below})"
    section = (folder / "comparison.md").read_text().split("Over teachers")[1]
    assert [line for line in section.splitlines() if line.startswith("| a | tiny | 3 | " + expected)]
    assert "| other |" not in section and "| bb |" not in section


def test_studies_that_differ_in_more_than_the_teacher_are_not_summed_up(tmp_path):
    one, (spec, *rest) = study(tmp_path, "one"), study(tmp_path, "other")
    longer = spec.model_copy(update={"teacher_seed": 1001, "max_length": spec.max_length + 1})
    _, folder, _ = run_comparison(tmp_path, [one, (longer, *rest)], "correlations")
    assert "Over teachers" not in (folder / "comparison.md").read_text()
