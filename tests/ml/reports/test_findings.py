"""What a report says in words, and the differences of its pairs of families."""

import json
import re

import numpy as np
import pytest

from tests.support import tiny_tables
from tokenuq_ml.config import AblationSpec, EvaluationSpec
from tokenuq_ml.reports.ablation_table import table_rows
from tokenuq_ml.reports.family_table import comparisons
from tokenuq_ml.reports.findings import findings, markdown_summary
from tokenuq_ml.reports.pairs import pair_data, picker


def row(family, difference=None, half=0.01, **changes):
    """A row of the family table; its interval is `half` to each side of the difference."""
    told = difference is not None and abs(difference) > half
    better = told and (difference > 0) is changes.get("higher_is_better", False)
    made = {
        "family": family,
        "selection": "all",
        "n_seeds": 5,
        "dataset": "sums",
        "split": "test",
        "metric": "loss",
        "value": 1.0 + (difference or 0),
        "n": 200,
        "higher_is_better": False,
        "against": "mle",
        "difference": difference,
        "difference_low": None if difference is None else difference - half,
        "difference_high": None if difference is None else difference + half,
        "verdict": None if difference is None else ("better" if better else "worse") if told else "not distinguishable",
    }
    return made | changes


def test_each_dataset_has_a_sentence_with_the_largest_differences():
    rows = [
        row("base", -0.5, selection=None),
        row("mle"),
        row("top", 0.04),
        row("low", 0.02),
        row("same", 0.005),
        *(row(name, difference, split="ood", dataset="far") for name, difference in (("mle", None), ("top", -0.03))),
    ]
    text = findings(rows)
    assert text.startswith(
        "In distribution (sums, 200 examples), top (+0.040 [+0.030, +0.050]) and low (+0.020 [+0.010, +0.030]) have a "
        "higher loss than mle; 1 other is not distinguishable. Out of distribution (far, 200 examples), top (-0.030 "
        "[-0.040, -0.020]) has a lower loss than mle."
    )
    assert (
        "less than about 0.01 nats per token could not have been seen; intervals are over examples and 5 seeds" in text
    )
    assert "base" not in text


def test_the_truth_comes_before_the_loss_and_other_metrics_are_counted():
    accuracy = {"metric": "accuracy", "higher_is_better": True}
    rows = [
        *(row("mle", metric=metric) for metric in ("loss", "true_kl")),
        row("top", 0.5),
        row("top", 0.001, metric="true_kl"),
        row("top", 0.2, **accuracy),
        row("low", 0.001, **accuracy),
    ]
    text = findings(rows)
    assert "top is not distinguishable from mle" in text and "higher loss" not in text
    assert "Of 2 differences on 1 other metric, 1 can be told from 0." in text
    assert "nats per token from the true distribution could not have been seen" in text


@pytest.mark.parametrize(
    "seeds, words", [(1, "leave out how much seeds differ"), (3, "with 3 seeds, intervals are too")]
)
def test_few_seeds_are_said(seeds, words):
    assert words in findings([row("mle", n_seeds=seeds), row("top", 0.1, n_seeds=seeds)])


def test_one_family_has_nothing_to_be_compared_with():
    assert "nothing to compare it with" in findings([row("mle")])


def test_the_summary_is_a_markdown_table():
    text = markdown_summary("s: m on d", [row("base", -0.5), row("mle"), row("top", 0.04)])
    assert text.startswith("**s: m on d.** In distribution")
    table = [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert table[0] == ["family", "seeds", "sums loss, difference to mle"]
    assert table[2:] == [
        ["base", "5", "0.500, -0.500 [-0.510, -0.490]"],
        ["mle", "5", "1.000"],
        ["top", "5", "1.040, +0.040 [+0.030, +0.050]"],
    ]


def compared():
    names = {"mle": 1.0, "mle_s1": 1.2, "top": 0.5}
    ablations = {name: AblationSpec(name=name, select="all", seed=int(name.endswith("_s1"))) for name in names}
    table = table_rows({name: tiny_tables.evaluations(loss, 0.1) for name, loss in names.items()})
    examples = {name: tiny_tables.evaluation_examples(loss) for name, loss in names.items()}
    return list(comparisons(table, examples, ablations, EvaluationSpec(bootstrap=200)))


def test_pairs_have_the_differences_of_the_paired_bootstrap():
    found, given = pair_data(compared()), compared()
    assert found["families"] == ["mle", "top"] and len(found["metrics"]) == len(given)
    for metric, one in zip(found["metrics"], given, strict=True):
        np.testing.assert_allclose(metric["pairs"]["0,1"], one.bootstrap.difference("mle", "top"), atol=1e-5)
        assert metric["values"][0] == pytest.approx(one.bootstrap.mean("mle").value, abs=1e-5)


def test_the_data_of_the_picker_cannot_end_its_script():
    changed = [one._replace(metric=("</script><b>", *one.metric[1:])) for one in compared()]
    text = picker(changed)
    data = text.partition('id="pairs-data">')[2]
    assert data.count("<") == 1 and json.loads(data.partition("<")[0])["metrics"][0]["dataset"] == "</script><b>"
