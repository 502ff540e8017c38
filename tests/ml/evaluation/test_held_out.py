"""The parts of held-out examples, compared with a small table counted by hand and with plain numpy."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.held_out import held_out_examples
from tokenuq_ml.evaluation.metrics import EXAMPLE_SCHEMA, metric_rows

BINS = 10
ROWS = [
    # example, dataset, split, position, loss, entropy, rank, confidence
    ("toy/a", "toy", "test", 1, 1.0, 0.5, 0, 0.75),
    ("toy/a", "toy", "test", 2, 2.0, 1.0, 3, 0.95),
    ("toy/a", "toy", "test", 3, 0.0, 0.0, 0, 0.75),
    ("toy/b", "toy", "test", 1, 5.0, 2.0, 1, 0.71),
    ("chat/a", "chat", "ood", 1, 0.5, 0.5, 0, 0.5),
    ("chat/a", "chat", "ood", 2, 1.5, 1.5, 0, 1.0),
    ("toy/c", "toy", "train", 1, 99.0, 9.0, 9, 0.5),
    ("toy/d", "toy", "validation", 1, 99.0, 9.0, 9, 0.5),
]
COLUMNS = ["example_id", "dataset", "split", "position", "loss", "entropy", "rank", "confidence"]


def tokens(rows=ROWS) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=COLUMNS, orient="row")
    return frame.with_columns(pl.col("loss", "entropy").cast(pl.Float32), pl.col("rank", "position").cast(pl.Int32))


def parts(examples: pl.DataFrame, metric: str) -> list[tuple]:
    return examples.filter(metric=metric).select("example_id", "numerator", "denominator").rows()


def test_parts_are_sums_over_the_tokens_of_an_example():
    examples = held_out_examples(tokens(), BINS)
    assert dict(examples.schema) == EXAMPLE_SCHEMA
    assert parts(examples, "loss") == [("chat/a", 2.0, 2.0), ("toy/a", 3.0, 3.0), ("toy/b", 5.0, 1.0)]
    assert parts(examples, "token_accuracy") == [("chat/a", 2.0, 2.0), ("toy/a", 2.0, 3.0), ("toy/b", 0.0, 1.0)]
    assert examples.select("dataset", "split").unique().sort("dataset").rows() == [("chat", "ood"), ("toy", "test")]
    assert set(examples["metric"]) == {"loss", "token_accuracy", "calibration_error"}


def test_the_calibration_error_of_a_small_table():
    # Bin (0.7, 0.8]: two of three right at a mean confidence of 2.21 / 3, so 0.21 too much; bin (0.9, 1.0]: none of
    # one at 0.95. In the chat: right at 0.5, and right at 1.
    sums = (
        held_out_examples(tokens(), BINS)
        .filter(metric="calibration_error")
        .group_by("dataset")
        .agg(pl.col("numerator").sum() / pl.col("denominator").sum())
    )
    assert dict(sums.iter_rows()) == pytest.approx({"toy": (0.21 + 0.95) / 4, "chat": 0.5 / 2})


@pytest.mark.parametrize("bins", [2, 15])
def test_calibration_parts_add_up_to_the_textbook_error(bins):
    draw = np.random.default_rng(3)
    confidence, count = draw.uniform(0.001, 1, 400), 400
    rank = (draw.random(count) > confidence**2).astype(int)
    rows = [
        (f"toy/{i // 8:03d}", "toy", "test", i % 8, 1.0, 1.0, int(rank[i]), float(confidence[i])) for i in range(count)
    ]
    examples = held_out_examples(tokens(rows), bins).filter(metric="calibration_error")
    expected = 0.0
    for low in np.arange(bins) / bins:
        inside = (confidence > low) & (confidence <= low + 1 / bins)
        if inside.any():
            expected += inside.mean() * abs((rank[inside] == 0).mean() - confidence[inside].mean())
    assert examples["numerator"].sum() / examples["denominator"].sum() == pytest.approx(expected, rel=1e-9)
    assert expected > 0.05


def test_changes_are_the_model_minus_the_teacher():
    teacher = tokens().select("example_id", "position", pl.col("loss") - 0.25, pl.col("entropy") + 1).reverse()
    examples = held_out_examples(tokens(), BINS, teacher)
    assert parts(examples, "loss_change") == [("chat/a", 0.5, 2.0), ("toy/a", 0.75, 3.0), ("toy/b", 0.25, 1.0)]
    assert parts(examples, "entropy_change") == [("chat/a", -2.0, 2.0), ("toy/a", -3.0, 3.0), ("toy/b", -1.0, 1.0)]
    without = held_out_examples(tokens(), BINS)
    assert examples.filter(~pl.col("metric").str.ends_with("_change")).equals(without)


def test_a_token_that_the_teacher_lacks_is_named():
    teacher = tokens().filter(pl.col("position") != 2)
    with pytest.raises(InputError, match="token 2 of (toy|chat)/a.*materialise token_losses again"):
        held_out_examples(tokens(), BINS, teacher)


def test_row_order_and_categorical_columns_do_not_matter():
    expected = held_out_examples(tokens(), BINS, tokens())
    shuffled = tokens().sample(fraction=1.0, shuffle=True, seed=3)
    assert held_out_examples(shuffled, BINS, shuffled.reverse()).equals(expected)
    categorical = shuffled.with_columns(pl.col("dataset", "split").cast(pl.Categorical))
    assert held_out_examples(categorical, BINS, tokens()).equals(expected)


def test_without_held_out_tokens_the_frame_is_empty_with_its_schema():
    empty = held_out_examples(tokens().filter(pl.col("split") == "train"), BINS)
    assert len(empty) == 0
    assert len(pl.concat([empty, held_out_examples(tokens(), BINS)])) == 9


@pytest.mark.slow
def test_it_imports_no_torch():
    code = "import sys, tokenuq_ml.evaluation.held_out; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def with_truth() -> pl.DataFrame:
    """The tokens with divergences and slots; those of `chat` have no truth."""
    slots = ["fact", "choice", "fact", "choice", None, None, None, None]
    divergences = [0.5, 0.25, 1.5, 2.0, None, None, None, None]
    return tokens().with_columns(
        pl.Series("slot", slots, dtype=pl.String),
        pl.Series("true_kl", divergences, dtype=pl.Float64),
        pl.Series("clean_kl", [None if one is None else 2 * one for one in divergences], dtype=pl.Float64),
    )


def test_divergences_from_the_truth_are_means_over_tokens_and_over_those_of_a_slot():
    examples = held_out_examples(with_truth(), BINS)
    assert parts(examples, "true_kl") == [("toy/a", 2.25, 3.0), ("toy/b", 2.0, 1.0)]
    assert parts(examples, "clean_kl") == [("toy/a", 4.5, 3.0), ("toy/b", 4.0, 1.0)]
    assert parts(examples, "true_kl_fact") == [("toy/a", 2.0, 2.0)]
    assert parts(examples, "true_kl_choice") == [("toy/a", 0.25, 1.0), ("toy/b", 2.0, 1.0)]
    assert parts(examples, "clean_kl_choice") == [("toy/a", 0.5, 1.0), ("toy/b", 4.0, 1.0)]
    others = examples.filter(~pl.col("metric").str.contains("_kl"))
    assert others.equals(held_out_examples(tokens(), BINS))
    assert set(examples.filter(dataset="chat")["metric"]) == set(others["metric"])


def test_data_without_a_truth_have_no_divergence():
    nothing = with_truth().with_columns(pl.lit(None).cast(pl.Float64).alias(name) for name in ("true_kl", "clean_kl"))
    assert held_out_examples(nothing, BINS).equals(held_out_examples(tokens(), BINS))


def test_less_divergence_is_better():
    rows = metric_rows(held_out_examples(with_truth(), BINS), EvaluationSpec(bootstrap=50))
    direction = dict(rows.filter(dataset="toy").select("metric", "higher_is_better").iter_rows())
    assert {name for name, up in direction.items() if not up} == {
        *("loss", "calibration_error"),
        *(f"{kind}_kl{slot}" for kind in ("true", "clean") for slot in ("", "_fact", "_choice")),
    }
    value = rows.filter(dataset="toy", metric="true_kl_choice").row(0, named=True)
    assert value["value"] == 2.25 / 2 and value["n"] == 2
