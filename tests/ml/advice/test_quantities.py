"""Quantities of a study's tables, against sums by hand; and what a study lacks."""

import numpy as np
import polars as pl
import pytest

from tokenuq_ml.advice.quantities import INTERVALS, QUANTITIES, Measured, study_quantities
from tokenuq_ml.advice.unseen_pairs import pair_counts
from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.tables.schemas import TABLES

# split, example, loss, entropy, rank, base_loss, bald, predictive_entropy
TOKENS = [
    ("train", "a", 0.5, 0.4, 0, 2.0, 0.01, 0.5),
    ("train", "a", 4.0, 1.0, 3, 5.0, 0.30, 1.5),
    ("train", "b", 0.1, 0.1, 0, 0.2, 0.00, 0.1),
    ("train", "b", 0.4, 0.4, 0, 0.8, 0.09, 0.9),
    ("validation", "c", 0.2, 0.3, 0, 0.4, 0.01, 0.3),
    ("validation", "c", 3.0, 0.5, 2, 4.0, 0.02, 0.6),
    ("validation", "d", 2.8, 1.5, 1, 3.6, 0.02, 1.6),
    ("test", "e", 9.0, 0.1, 9, 9.9, 0.90, 9.0),
    ("ood", "f", 3.0, 2.0, 1, 2.0, 0.10, 2.0),
]
TEXTS = [
    ("train", "a", [1, 2, 3, 4]),
    ("train", "b", [1, 2, 3, 5]),
    ("validation", "c", [1, 2, 3, 4, 9]),
    ("validation", "d", [1, 2, 3, 5]),
    ("test", "e", [1, 2, 7]),
    ("ood", "f", [8, 8]),
]


def written(home, tokens=TOKENS, texts=TEXTS, lacks=None):
    """Write the token tables of the study `s`."""
    names = ("split", "example_id", "loss", "entropy", "rank", "base_loss", "bald", "predictive_entropy")
    rows = pl.DataFrame(tokens, schema=names, orient="row").with_columns(
        position=pl.int_range(pl.len()), dataset=pl.lit("d"), token_id=pl.lit(1), token=pl.lit("x")
    )
    rows = rows.with_columns(category=pl.lit("word"), base_entropy="entropy", expected_entropy="entropy")
    rows = rows.with_columns(bald_std_error="bald", mc_loss="loss", n_samples=pl.lit(5))
    frames = {table: rows.select(*TABLES[table].columns) for table in ("token_losses", "token_uncertainty")}
    frames = {table: frame for table, frame in frames.items() if table != lacks}
    if texts:
        frame = pl.DataFrame(texts, schema=("split", "example_id", "input_ids"), orient="row")
        trained = pl.col("input_ids").list.eval(pl.element() > 0)
        frames["tokenized_dataset"] = frame.with_columns(dataset=pl.lit("d"), response_mask=trained)
    for table, frame in frames.items():
        write_table(frame, table, home / table / "study=s", spec_hash="s", code_version="c")
    return home


def values(home) -> dict[str, float | None]:
    return {name: found.value for name, found in study_quantities(home, "s", None).items()}


def test_each_quantity_by_hand(tmp_path):
    assert values(written(tmp_path)) == pytest.approx(
        {
            "entropy_on_errors": (0.5 + 1.5) / 2,
            "error_share": 2 / 3,
            "excess_share": (6.0 - 2.3) / 6.0,
            # 4.0 exceeds 1.0 by more than 2 nats.
            "confident_errors": 1 / 4,
            # A quarter of four tokens is the one with loss 4.0.
            "top_quarter_loss": 4.0 / 5.0,
            "bald_share": 0.4 / 3.0,
            "loss_gap": 1 - (5.0 / 4) / (6.0 / 3),
            "learned": 1 - 6.0 / 8.0,
            "forgotten": 3.0 / 2.0 - 1,
            # Pairs but those of the template (1 2, 2 3): c has 3 4 and 4 9, d has 3 5; no training text has 4 9.
            "unseen_pairs": 1 / 3,
        },
        rel=1e-6,
    )


def test_test_examples_have_no_part(tmp_path):
    before = values(written(tmp_path / "all"))
    assert values(written(tmp_path / "some", [row for row in TOKENS if row[0] != "test"])) == pytest.approx(before)


@pytest.mark.parametrize(
    "lacks, undefined",
    [
        ("ood", {"forgotten"}),
        (
            "validation",
            {"entropy_on_errors", "error_share", "excess_share", "loss_gap", "learned", "unseen_pairs"},
        ),
        ("train", {"confident_errors", "top_quarter_loss", "bald_share", "loss_gap"}),
    ],
)
def test_what_a_study_lacks_is_undefined(tmp_path, lacks, undefined):
    written(tmp_path, [row for row in TOKENS if row[0] != lacks], [row for row in TEXTS if row[0] != lacks])
    found = study_quantities(tmp_path, "s")
    assert {name for name, one in found.items() if one == Measured(None, None, None)} == undefined


def test_no_errors_and_no_texts_are_undefined(tmp_path):
    certain = [(*row[:4], 0, *row[5:]) for row in TOKENS]
    found = values(written(tmp_path, certain, texts=()))
    assert found["entropy_on_errors"] is None and found["unseen_pairs"] is None and found["error_share"] == 0


def test_a_study_without_bald_has_the_other_quantities(tmp_path):
    complete = values(written(tmp_path / "complete"))
    found = values(written(tmp_path / "some", lacks="token_uncertainty"))
    assert found.pop("bald_share") is None and found == pytest.approx({name: complete[name] for name in found})


def test_intervals_resample_examples(tmp_path):
    found = study_quantities(written(tmp_path), "s")
    # Two examples: a resample has both, or one of them twice.
    assert found["error_share"].low == pytest.approx(1 / 2) and found["error_share"].high == 1
    ends = (found["learned"].low, found["learned"].high)
    assert ends == pytest.approx((1 - 2.8 / 3.6, 1 - 3.2 / 4.4), rel=1e-6)
    one = found["forgotten"]
    assert one.low == one.value == one.high
    wide = study_quantities(tmp_path, "s", INTERVALS.model_copy(update={"confidence": 0.1}))
    assert wide["error_share"].low > found["error_share"].low


def test_a_study_without_tables_is_named(tmp_path):
    with pytest.raises(InputError, match="study 's' has no table token_losses.*tokenuq run --study s"):
        study_quantities(tmp_path, "s")


def test_pairs_are_within_a_text():
    texts = pl.LazyFrame(
        [("train", "a", [1, 2]), ("train", "b", [3, 4]), ("validation", "c", [2, 3]), ("validation", "d", [5])],
        schema=("split", "example_id", "input_ids"),
        orient="row",
    )
    # Not 2 3, which are neighbours of two texts.
    assert pair_counts(texts).rows() == [("c", 1, 1)]


def test_every_quantity_is_a_ratio_with_a_meaning():
    class Ones(dict):
        def __missing__(self, name):
            return np.ones(1)

    for quantity in QUANTITIES.values():
        assert quantity.meaning and not quantity.meaning.endswith(".") and np.isfinite(quantity.value(Ones())[0])
