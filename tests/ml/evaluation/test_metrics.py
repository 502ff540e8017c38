"""Metrics as ratios of sums over examples, against values and intervals known by hand."""

import polars as pl
import pytest

from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.evaluation.metrics import (
    EXAMPLE_SCHEMA,
    METRIC_SCHEMA,
    NO_DIRECTION,
    example_rows,
    metric_rows,
    with_identity,
)
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TABLES

EVALUATION = EvaluationSpec(bootstrap=300)


def examples() -> pl.DataFrame:
    ids = pl.Series(["toy/a", "toy/b"])
    return pl.concat(
        [
            example_rows("toy", "test", "loss", ids, [3.0, 5.0], [3, 1]),
            example_rows("toy", "test", "token_accuracy", ids, [2, 0], [3, 1]),
            example_rows("chat", "ood", "loss", pl.Series(["chat/a"]), [2.0], [2]),
        ]
    )


def test_values_and_intervals_known_by_hand():
    metrics = metric_rows(examples(), EVALUATION)
    assert metrics.select("dataset", "split", "metric", "value", "n", "higher_is_better").rows() == [
        ("chat", "ood", "loss", 1.0, 1, False),
        ("toy", "test", "loss", 2.0, 2, False),
        ("toy", "test", "token_accuracy", 0.5, 2, True),
    ]
    intervals = {
        (row["dataset"], row["metric"]): (row["ci_low"], row["ci_high"]) for row in metrics.iter_rows(named=True)
    }
    assert intervals["chat", "loss"] == (1.0, 1.0)
    # Two examples: a resample is a twice, b twice, or both, so the ends are the examples' own ratios.
    assert intervals["toy", "loss"] == pytest.approx((1.0, 5.0))
    assert intervals["toy", "token_accuracy"] == pytest.approx((0.0, 2 / 3))


def test_changes_and_bias_have_no_direction():
    ids = pl.Series(["toy/a", "toy/b"])
    names = ["loss", "calibration_error", "win_rate", "exact_match_strict", *sorted(NO_DIRECTION)]
    table = metric_rows(pl.concat(example_rows("toy", "test", name, ids, [1, 0], [1, 1]) for name in names), EVALUATION)
    assert dict(table.select("metric", "higher_is_better").iter_rows()) == {
        "loss": False,
        "calibration_error": False,
        "win_rate": True,
        "exact_match_strict": True,
        "entropy_change": None,
        "loss_change": None,
        "position_bias": None,
    }


def test_the_order_of_examples_does_not_matter():
    assert metric_rows(examples().reverse(), EVALUATION).equals(metric_rows(examples(), EVALUATION))


def test_the_spec_sets_the_interval():
    ids = pl.Series([f"toy/{i:02d}" for i in range(30)])
    many = example_rows("toy", "test", "loss", ids, [float(i % 7) for i in range(30)], [1] * 30)
    narrow, wide = (metric_rows(many, EvaluationSpec(bootstrap=500, confidence=c)) for c in (0.5, 0.99))
    for row, wider in zip(narrow.iter_rows(named=True), wide.iter_rows(named=True), strict=True):
        assert wider["ci_low"] < row["ci_low"] < row["value"] < row["ci_high"] < wider["ci_high"]


def test_without_examples_there_are_no_metrics():
    assert dict(metric_rows(pl.DataFrame(schema=EXAMPLE_SCHEMA), EVALUATION).schema) == METRIC_SCHEMA


@pytest.mark.parametrize("seed", [None, 3])
def test_both_tables_fit_their_schemas(seed, tmp_path):
    metrics = metric_rows(examples(), EVALUATION)
    assert dict(metrics.schema) == METRIC_SCHEMA
    table = with_identity(metrics, "mle", seed)
    assert table.columns == list(TABLES["evaluations"].columns)
    assert table.schema["seed"] == pl.Int32 and table["seed"].to_list() == [seed] * 3
    keys = TABLES["evaluation_examples"].keys
    for name, frame in {"evaluations": table, "evaluation_examples": examples().sort(keys)}.items():
        write_table(frame, name, tmp_path / name, spec_hash="x", code_version="1-x")
        assert read_table(tmp_path / name).equals(frame)
