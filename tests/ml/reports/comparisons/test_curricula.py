"""Explicit curricula against the automatic one, and what that one selects over time."""

import json

import polars as pl
import pytest

from tests.support import tiny_tables
from tests.support.compared_studies import run_comparison, write_study
from tokenuq_ml.config import AblationSpec, StudySpec
from tokenuq_ml.config.comparison import CurriculaComparison

FAMILIES = {"paper_top25": (1.0, 1.5), "quantile_anneal": (0.8, 1.5), "rank_growth": (1.2, 1.3), "mle": (1.0, 2.0)}
STEPS = 8


def curriculum(first, last, steps=STEPS):
    """`words` are selected at the rate `first` in the first half of the steps and `last` in the second, others half."""
    parts = []
    for step in range(1, steps + 1):
        for category, share in (("word", first if step <= steps / 2 else last), ("number", 0.5)):
            row = {"step": step, "epoch": step / steps, "category": category, "n_tokens": 100}
            parts.append({**row, "n_selected": round(100 * share), "mean_loss": 1.0})
    # A category that the last quarter does not have.
    parts.append({**parts[0], "category": "code", "n_tokens": 4, "n_selected": 4})
    return pl.DataFrame(parts)


def study(folder, name, families=None, steps=STEPS):
    spec, ablations, inputs = write_study(folder / name, name, families or FAMILIES)
    frames = {
        f"curriculum/{model}": curriculum(0.2, 0.6 + 0.1 * one.seed, steps)
        if one.family == "paper_top25"
        else curriculum(0.0, 1.0, steps)
        for model, one in ablations.items()
    }
    paths = tiny_tables.publish(folder / name, frames)
    return spec, ablations, inputs | {f"{name}/{key}": path for key, path in paths.items()}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curricula")
    return run_comparison(folder, [study(folder, "one")], "curricula")


def test_explicit_curricula_are_compared_with_the_automatic_one(page):
    result, folder, _ = page
    found = {(row["family"], row["split"]): row for row in json.loads((folder / "curricula.json").read_text())}
    assert {key: row["verdict"] for key, row in found.items()} == {
        ("quantile_anneal", "test"): "better",
        ("quantile_anneal", "ood"): "same",
        ("rank_growth", "test"): "worse",
        ("rank_growth", "ood"): "better",
        ("mle", "test"): "same",
        ("mle", "ood"): "worse",
    }
    assert found["rank_growth", "ood"]["change"] == pytest.approx(-0.2, abs=0.01)
    assert found["rank_growth", "ood"]["explicit"] and not found["mle", "ood"]["explicit"]
    assert (
        "Against paper_top25 in distribution: quantile_anneal better in 1 of 1, rank_growth worse in 1 of 1, mle not "
        "distinguishable in 1 of 1." in result.metrics["verdict"]
    )


def test_what_the_automatic_one_selects_is_followed_over_quarters(page):
    result, folder, _ = page
    found = {row["category"]: row for row in json.loads((folder / "selected.json").read_text())}
    assert list(found) == ["all", "number", "word"]
    # The mean of two seeds, whose shares in the second half are 0.6 and 0.7.
    assert [found["word"][f"quarter_{number}"] for number in (1, 2, 3, 4)] == pytest.approx([0.2, 0.2, 0.65, 0.65])
    assert (found["word"]["lowest_change"], found["word"]["highest_change"]) == pytest.approx((0.4, 0.5))
    assert (found["word"]["tokens"], found["word"]["seeds"], found["number"]["change"]) == (100 * STEPS, 2, 0)
    assert found["all"]["quarter_1"] == pytest.approx((2 * 20 + 2 * 50 + 4) / 404, abs=0.01)
    assert "selects 20% of the tokens of category word in the first quarter" in result.metrics["verdict"]
    assert (folder / "curricula.png").stat().st_size > 1000


def test_a_training_of_fewer_steps_than_quarters_has_no_selection_over_time(tmp_path):
    result, folder, _ = run_comparison(tmp_path, [study(tmp_path, "one", steps=3)], "curricula")
    assert not (folder / "selected.json").exists() and "quarter" not in result.metrics["verdict"]


@pytest.mark.parametrize(
    ("families", "options", "problem"),
    [
        (["mle", "quantile_anneal"], {}, "has no family 'paper_top25', which is the baseline"),
        (["paper_top25", "mle"], {}, "has no explicit curriculum; add some of quantile_anneal, quantile_adaptive"),
        (["paper_top25", "mle"], {"curricula": ["mle"], "without": []}, None),
    ],
)
def test_a_study_that_cannot_be_compared_is_refused(families, options, problem):
    ablations = {name: AblationSpec(name=name, select="all") for name in families}
    spec = StudySpec(name="s", model="m", dataset="d", ablations=tuple(families))
    found = CurriculaComparison(name="c", kind="curricula", studies=("s",), **options).problem_with(spec, ablations)
    assert found is None if problem is None else problem in found


@pytest.mark.parametrize(
    ("options", "error"),
    [({"curricula": []}, "'curricula' is empty"), ({"without": ["paper_top25"]}, "a family twice")],
)
def test_wrong_options_are_refused(options, error):
    with pytest.raises(ValueError, match=error):
        CurriculaComparison(name="c", kind="curricula", studies=("s",), **options)
