"""Rows and verdict of the family table, on families whose differences are known."""

import json

import polars as pl
import pytest

from tests.support import tiny_tables
from tokenuq_ml.config import AblationSpec, EvaluationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import KEYS
from tokenuq_ml.reports.ablation_table import table_rows
from tokenuq_ml.reports.family_table import families_of, family_rows, metric_parts, verdict

EVALUATION = EvaluationSpec(bootstrap=300)
LOSS = {"by": "loss", "quantile": 0.25}


def ablation(name: str, select="all", seed: int = 0, **more) -> AblationSpec:
    return AblationSpec(name=name, select=select, seed=seed, **more)


def rows(ablations: list[AblationSpec], losses: dict[str, float], **examples) -> list[dict]:
    """Of models whose every token has that loss more than its example's own part; noise where asked for."""
    losses = {"base": 3.0, "teacher": 2.0} | losses
    table = table_rows({name: tiny_tables.evaluations(loss, 0.1) for name, loss in losses.items()})
    frames = {name: tiny_tables.evaluation_examples(loss) for name, loss in losses.items()} | examples
    return family_rows(table, frames, {one.name: one for one in ablations}, EVALUATION)


THREE = [
    ablation("mle"),
    ablation("mle_s1", seed=1),
    ablation("top", LOSS),
    ablation("random", {"by": "random", "quantile": 0.5}),
]
LOSSES = {"mle": 1.0, "mle_s1": 1.2, "top": 0.5, "random": 1.3}


def test_families_are_in_the_studys_order_with_references_on_top():
    assert families_of({one.name: one for one in THREE}) == {
        "mle": ["mle", "mle_s1"],
        "top": ["top"],
        "random": ["random"],
    }
    found = rows(THREE, LOSSES)
    assert [(row["family"], row["selection"], row["n_seeds"]) for row in found if row["dataset"] == "toy"] == [
        ("base", None, 1),
        ("teacher", None, 1),
        ("mle", "all", 2),
        ("top", "dynamic", 1),
        ("random", "static", 1),
    ]
    assert json.loads(json.dumps(found)) == found


def test_means_spreads_and_differences():
    found = {row["family"]: row for row in rows(THREE, LOSSES) if row["split"] == "ood"}
    mle, top = found["mle"], found["top"]
    assert mle["spread"] == pytest.approx(0.2 / 2**0.5) and top["spread"] is None
    assert mle["models"] == "mle mle_s1" and mle["n"] == 9
    assert mle["difference"] is None and mle["verdict"] is None
    # mle's mean is 1.1 above what the examples have of their own; resampling seeds moves it by 0.1 at most.
    assert top["difference"] == pytest.approx(-0.6)
    assert (top["difference_low"], top["difference_high"]) == pytest.approx((-0.7, -0.5))
    assert (top["against"], top["verdict"]) == ("mle", "better")
    assert found["random"]["difference"] == pytest.approx(0.2) and found["random"]["verdict"] == "worse"


def test_a_difference_whose_interval_contains_0_is_not_distinguishable():
    noisy = tiny_tables.evaluation_examples(1.001, noise=0.5, draw=3)
    found = rows([ablation("mle"), ablation("top", LOSS), ablation("same", LOSS)], {"mle": 1.0, "same": 1.0}, top=noisy)
    by_family = {row["family"]: row for row in found if row["split"] == "test"}
    assert by_family["top"]["verdict"] == by_family["same"]["verdict"] == "not distinguishable"
    assert by_family["top"]["difference_low"] < 0 < by_family["top"]["difference_high"]
    assert by_family["same"]["difference"] == by_family["same"]["difference_high"] == 0
    assert "cannot separate the ablations" in verdict(found)


def test_with_one_example_nothing_is_distinguishable():
    one = {name: tiny_tables.evaluation_examples(LOSSES[name], examples=1) for name in ("mle", "top")}
    references = {name: tiny_tables.evaluation_examples(2.0, examples=1) for name in ("base", "teacher")}
    found = rows([ablation("mle"), ablation("top", LOSS)], {"mle": 1.0, "top": 0.5}, **one, **references)
    top = next(row for row in found if row["family"] == "top")
    assert top["difference_high"] == pytest.approx(-0.5) and top["verdict"] == "not distinguishable"


def test_a_higher_value_is_better_where_higher_is_better():
    ablations = [ablation("mle"), ablation("top", LOSS)]
    accuracy = {
        name: tiny_tables.evaluations(value, 0.1).with_columns(metric=pl.lit("acc"), higher_is_better=pl.lit(True))
        for name, value in {"mle": 0.4, "top": 0.7}.items()
    }
    examples = {
        name: tiny_tables.evaluation_examples(value).with_columns(metric=pl.lit("acc"))
        for name, value in {"mle": 0.4, "top": 0.7}.items()
    }
    found = family_rows(table_rows(accuracy), examples, {one.name: one for one in ablations}, EVALUATION)
    assert {row["verdict"] for row in found if row["family"] == "top"} == {"better"}


def test_a_metric_without_direction_has_the_verdict_higher_or_lower():
    ablations = [ablation("mle"), ablation("top", LOSS), ablation("random", {"by": "random", "quantile": 0.5})]
    values = {"mle": 0.4, "top": 0.7, "random": 0.1}
    changes = {
        name: tiny_tables.evaluations(value, 0.1).with_columns(
            metric=pl.lit("entropy_change"), higher_is_better=pl.lit(None, pl.Boolean)
        )
        for name, value in values.items()
    }
    examples = {
        name: tiny_tables.evaluation_examples(value).with_columns(metric=pl.lit("entropy_change"))
        for name, value in values.items()
    }
    table = table_rows(changes)
    assert not any(row["best"] for row in table) and all(row["separated"] for row in table)
    found = family_rows(table, examples, {one.name: one for one in ablations}, EVALUATION)
    assert {(row["family"], row["verdict"]) for row in found} == {("mle", None), ("top", "higher"), ("random", "lower")}
    assert "toy entropy_change (higher top; lower random)" in verdict(found)


def test_judged_metrics_compare_the_examples_that_all_models_have():
    ablations = [ablation("mle"), ablation("top", LOSS)]
    values = {"mle": 0.4, "top": 0.7}
    table = {
        name: tiny_tables.evaluations(value, 0.1).with_columns(metric=pl.lit("win_rate"), higher_is_better=pl.lit(True))
        for name, value in values.items()
    }
    examples = {
        name: tiny_tables.evaluation_examples(value).with_columns(metric=pl.lit("win_rate"))
        for name, value in values.items()
    }

    def compared(top: pl.DataFrame) -> list[dict]:
        frames = {**examples, "top": top}
        rows = family_rows(table_rows(table), frames, {one.name: one for one in ablations}, EVALUATION)
        return [row for row in rows if row["split"] == "test"]

    silent = examples["top"].filter(~pl.col("example_id").is_in(["toy/000", "toy/004"]))
    both = compared(silent)
    assert [row["n"] for row in both] == [7, 7]
    alone = silent.filter(split="test")
    assert both[1]["value"] == pytest.approx(alone["numerator"].sum() / alone["denominator"].sum())
    assert [row["family"] for row in compared(examples["top"].filter(split="ood"))] == ["mle"]


def test_samples_of_lm_eval_that_changed_are_not_compared():
    """A sample's id holds a hash of its content, so that other data under the same number is another sample."""
    metric = ("lm_eval/arc_easy", "test", "acc")

    def answers(*ids: str) -> pl.DataFrame:
        one = [1.0] * len(ids)
        frame = pl.DataFrame({"example_id": ids, "numerator": one, "denominator": one})
        return frame.with_columns(**{name: pl.lit(value) for name, value in zip(KEYS, metric, strict=True)})

    parts = metric_parts(metric, {"mle": answers("0/aa", "1/bb", "2/cc"), "top": answers("0/aa", "1/xx", "2/cc")})
    assert {len(numerators) for numerators, _ in parts.values()} == {2}
    with pytest.raises(InputError, match="lm_eval/arc_easy acc: mle and top were evaluated on other samples"):
        metric_parts(metric, {"mle": answers("0/aa"), "top": answers("0/xx")})


def test_without_mle_the_first_family_is_the_baseline():
    found = rows([ablation("top", LOSS), ablation("random", {"by": "random", "quantile": 0.5})], LOSSES)
    assert {row["against"] for row in found} == {"top"}
    assert {row["verdict"] for row in found if row["family"] == "random"} == {"worse"}
    assert verdict(found).startswith("Distinguishable from top on: toy loss (worse random)")


def test_the_verdict_names_the_largest_differences_and_counts_the_rest():
    losses = {"mle": 1.0, **{f"f{n}": 1.0 + 0.1 * n for n in range(1, 6)}, "good": 0.9}
    ablations = [ablation(name) for name in losses]
    said = verdict(rows(ablations, losses))
    assert "toy loss (better good; worse f5, f4, f3 and 2 more)" in said
    assert "nothing to compare" in verdict(rows([ablation("mle")], {"mle": 1.0}))


def test_models_on_different_examples_are_refused():
    other = tiny_tables.evaluation_examples(0.5).with_columns(pl.col("example_id") + "x")
    with pytest.raises(InputError, match="toy loss: top and base were evaluated on different examples; materialise"):
        rows([ablation("mle"), ablation("top", LOSS)], {"mle": 1.0, "top": 0.5}, top=other)


def test_a_family_has_no_row_for_a_metric_that_a_seed_lacks():
    less = tiny_tables.evaluation_examples(1.2).filter(split="ood")
    found = rows(THREE, LOSSES, mle_s1=less)
    assert "mle" not in {row["family"] for row in found if row["split"] == "test"}
    assert {row["verdict"] for row in found if row["split"] == "test"} == {None}
    assert "mle" in {row["family"] for row in found if row["split"] == "ood"}
