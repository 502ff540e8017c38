"""Held-out metrics against a small table whose answers are counted by hand."""

import subprocess
import sys

import polars as pl
import pytest

from tokenuq_ml.evaluation.held_out import METRIC_SCHEMA, held_out_metrics, with_identity
from tokenuq_ml.specs import EvaluationSpec
from tokenuq_ml.tables import TABLES, read_table, write_table

EVALUATION = EvaluationSpec(bootstrap=300)


def tokens() -> pl.DataFrame:
    rows = [
        # example, dataset, split, loss, rank
        ("toy/a", "toy", "test", 1.0, 0),
        ("toy/a", "toy", "test", 2.0, 3),
        ("toy/a", "toy", "test", 0.0, 0),
        ("toy/b", "toy", "test", 5.0, 1),
        ("chat/a", "chat", "ood", 0.5, 0),
        ("chat/a", "chat", "ood", 1.5, 0),
        ("toy/c", "toy", "train", 99.0, 9),
        ("toy/d", "toy", "validation", 99.0, 9),
    ]
    frame = pl.DataFrame(rows, schema=["example_id", "dataset", "split", "loss", "rank"], orient="row")
    return frame.with_columns(pl.col("loss").cast(pl.Float32), pl.col("rank").cast(pl.Int32), position=pl.lit(1))


def test_counts_tokens_within_and_examples_across():
    metrics = held_out_metrics(tokens(), EVALUATION)
    assert metrics.select("dataset", "split", "metric", "value", "n", "higher_is_better").rows() == [
        ("chat", "ood", "loss", 1.0, 1, False),
        ("chat", "ood", "token_accuracy", 1.0, 1, True),
        ("toy", "test", "loss", 2.0, 2, False),
        ("toy", "test", "token_accuracy", 0.5, 2, True),
    ]
    intervals = {
        (row["dataset"], row["metric"]): (row["ci_low"], row["ci_high"]) for row in metrics.iter_rows(named=True)
    }
    assert intervals["chat", "loss"] == (1.0, 1.0)
    # Two examples: a resample is a twice, b twice, or both, so the ends are the examples' own means.
    assert intervals["toy", "loss"] == pytest.approx((1.0, 5.0))
    assert intervals["toy", "token_accuracy"] == pytest.approx((0.0, 2 / 3))


def test_order_and_categorical_columns_change_nothing():
    expected = held_out_metrics(tokens(), EVALUATION)
    shuffled = tokens().sample(fraction=1.0, shuffle=True, seed=3)
    assert held_out_metrics(shuffled, EVALUATION).equals(expected)
    categorical = shuffled.with_columns(pl.col("dataset", "split").cast(pl.Categorical))
    assert held_out_metrics(categorical, EVALUATION).equals(expected)


def test_the_spec_sets_the_interval():
    many = pl.DataFrame(
        {
            "example_id": [f"toy/{i // 3}" for i in range(90)],
            "dataset": "toy",
            "split": "test",
            "loss": [float(i % 7) for i in range(90)],
            "rank": [i % 2 for i in range(90)],
        }
    )
    narrow, wide = (held_out_metrics(many, EvaluationSpec(bootstrap=500, confidence=c)) for c in (0.5, 0.99))
    for row, wider in zip(narrow.iter_rows(named=True), wide.iter_rows(named=True), strict=True):
        assert wider["ci_low"] < row["ci_low"] < row["value"] < row["ci_high"] < wider["ci_high"]


def test_nothing_held_out_gives_no_rows_that_still_concatenate():
    empty = held_out_metrics(tokens().filter(pl.col("split") == "train"), EVALUATION)
    assert len(empty) == 0
    assert len(pl.concat([empty, held_out_metrics(tokens(), EVALUATION)])) == 4


@pytest.mark.parametrize("seed", [None, 3])
def test_with_identity_makes_the_evaluations_table(seed, tmp_path):
    metrics = held_out_metrics(tokens(), EVALUATION)
    assert dict(metrics.schema) == METRIC_SCHEMA
    table = with_identity(metrics, "mle", seed)
    assert table.columns == list(TABLES["evaluations"].columns)
    assert table.schema["seed"] == pl.Int32 and table["seed"].to_list() == [seed] * 4
    write_table(table, "evaluations", tmp_path, spec_hash="x", code_version="1-x")
    assert read_table(tmp_path).equals(table)


def test_needs_no_torch():
    code = "import sys, tokenuq_ml.evaluation.held_out; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
