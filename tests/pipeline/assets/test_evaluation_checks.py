"""Checks of evaluations on hand-made tables: quality against the references, and the judge's position bias."""

import pytest

from tests.support.tiny_store import put
from tokenuq_pipeline.assets import evaluation_checks
from tokenuq_pipeline.runtime.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def evaluation(store, ablation, test, ood):
    row = {"family": "x", "seed": 0, "metric": "loss", "n": 2, "higher_is_better": False}
    put(
        store,
        "evaluations",
        [
            {**row, "dataset": dataset, "split": split, "value": value, "ci_low": value - 0.1, "ci_high": value + 0.1}
            for dataset, split, value in (("d", "test", test), ("o", "ood", ood))
        ],
        study="s",
        ablation=ablation,
    )


@pytest.mark.parametrize(
    "test, ood, quality, kept", [(0.9, 1.05, True, True), (1.1, 1.05, False, True), (0.9, 1.2, True, False)]
)
def test_quality_only_warns(store, test, ood, quality, kept):
    evaluation(store, "base", 1.0, 2.0)
    evaluation(store, "teacher", 0.8, 1.0)
    evaluation(store, "a", test, ood)
    results = evaluation_checks.quality_in_distribution(store, "s", "a"), evaluation_checks.ood_kept(store, "s", "a")
    assert [result.passed for result in results] == [quality, kept]
    assert all(result.severity.value == "WARN" for result in results)
    assert f"{test:.3f}" in results[0].description and f"{ood:.3f}" in results[1].description


@pytest.mark.parametrize("flips, passed", [((0.1, 0.3), True), ((0.1, 0.6), False), ((0.5, 0.0), False), ((), True)])
def test_a_judge_with_position_bias_gets_a_warning(store, flips, passed):
    row = {"family": "x", "seed": 0, "dataset": "d", "split": "ood", "ci_low": 0.0, "ci_high": 1.0, "n": 20}
    for model, flip in zip(("base", "teacher"), flips or (None, None), strict=True):
        rows = [{**row, "metric": "loss", "value": 9.0, "higher_is_better": False}]
        if flip is not None:
            rows.append({**row, "metric": "position_bias", "value": flip, "higher_is_better": None})
        put(store, "evaluations", rows, study="s", ablation=model)
    result = evaluation_checks.judge_is_consistent(store, "s", "base", "teacher")
    assert result.passed is passed and result.severity.value == "WARN"
    if flips:
        assert f"{max(flips):.0%} of the 20 verdicts" in result.description
        assert ("the judge's bias" in result.description) is not passed
    else:
        assert "nothing was judged" in result.description


def test_without_a_reference_evaluation_the_check_names_what_to_materialise(store):
    evaluation(store, "a", 1.0, 1.0)
    for check in (evaluation_checks.quality_in_distribution, evaluation_checks.ood_kept):
        result = check(store, "s", "a")
        assert not result.passed and "materialise s/reference_evaluation" in result.description
