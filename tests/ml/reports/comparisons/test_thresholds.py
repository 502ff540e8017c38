"""The quantile against the data set: the best one of each study, those that are as good, and what is not compared."""

import json

import pytest

from tests.support.compared_studies import run_comparison, write_study

CURVE = {"mle": (1.0, 2.0), "paper_top10": (1.3, 1.5), "paper_top25": (1.2, 1.7), "paper_top50": (0.9, 1.8)}
OTHERS = {"paper_top75": (0.9, 1.9), "masked_mle_top25": (1.5, 2.5), "random_top25": (0.1, 0.1)}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thresholds")
    return run_comparison(folder, [write_study(folder / "s", "s", {**CURVE, **OTHERS})], "thresholds")


def rows(folder, curve, split):
    found = json.loads((folder / "thresholds.json").read_text())
    return {row["quantile"]: row for row in found if (row["curve"], row["split"]) == (curve, split)}


def test_the_best_quantile_is_found_in_and_out_of_distribution(page):
    _, folder, _ = page
    inside, outside = rows(folder, "paper_top", "test"), rows(folder, "paper_top", "ood")
    assert list(inside) == [0.1, 0.25, 0.5, 0.75, 1.0]
    # 50% and 75% have one mean, so that both are as good; which one is the best is chance.
    assert [one for one, row in inside.items() if row["as_good_as_best"]] == [0.5, 0.75]
    assert [one for one, row in outside.items() if row["as_good_as_best"]] == [0.1] and outside[0.1]["best"]


def test_differences_are_to_the_baseline_which_is_all_tokens(page):
    _, folder, _ = page
    outside = rows(folder, "paper_top", "ood")
    assert outside[1.0]["family"] == "mle" and outside[1.0]["change"] == 0
    assert outside[0.1]["change"] == pytest.approx(-0.5, abs=0.01) and outside[0.1]["verdict"] == "better"
    assert outside[0.1]["low"] < outside[0.1]["change"] < outside[0.1]["high"]


def test_a_curve_has_only_what_was_trained_and_other_families_are_left_out(page):
    result, folder, _ = page
    assert list(rows(folder, "masked_mle_top", "test")) == [0.25, 1.0]
    assert "random_top25" not in (folder / "comparison.md").read_text()
    best = "best or not distinguishable from the best"
    assert result.metrics["verdict"] == " ".join(
        [
            f"masked_mle_top in distribution, {best}: 100% in the only comparison.",
            f"paper_top in distribution, {best}: 50%, 75% in the only comparison.",
            f"masked_mle_top out of distribution, {best}: 100% in the only comparison.",
            f"paper_top out of distribution, {best}: 10% in the only comparison.",
        ]
    )
    assert (folder / "thresholds.png").stat().st_size > 1000
