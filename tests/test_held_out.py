"""What held-out examples add to the metrics, against a small table that is counted by hand."""

import subprocess
import sys

import polars as pl

from tokenuq_ml.evaluation.held_out import held_out_examples
from tokenuq_ml.evaluation.metrics import EXAMPLE_SCHEMA


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


def test_tokens_are_counted_within_each_example():
    examples = held_out_examples(tokens())
    assert dict(examples.schema) == EXAMPLE_SCHEMA
    assert examples.rows() == [
        ("chat/a", "chat", "ood", "loss", 2.0, 2.0),
        ("chat/a", "chat", "ood", "token_accuracy", 2.0, 2.0),
        ("toy/a", "toy", "test", "loss", 3.0, 3.0),
        ("toy/b", "toy", "test", "loss", 5.0, 1.0),
        ("toy/a", "toy", "test", "token_accuracy", 2.0, 3.0),
        ("toy/b", "toy", "test", "token_accuracy", 0.0, 1.0),
    ]


def test_order_and_categorical_columns_change_nothing():
    expected = held_out_examples(tokens())
    shuffled = tokens().sample(fraction=1.0, shuffle=True, seed=3)
    assert held_out_examples(shuffled).equals(expected)
    categorical = shuffled.with_columns(pl.col("dataset", "split").cast(pl.Categorical))
    assert held_out_examples(categorical).equals(expected)


def test_nothing_held_out_gives_no_rows_that_still_concatenate():
    empty = held_out_examples(tokens().filter(pl.col("split") == "train"))
    assert len(empty) == 0
    assert len(pl.concat([empty, held_out_examples(tokens())])) == 6


def test_needs_no_torch():
    code = "import sys, tokenuq_ml.evaluation.held_out; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
