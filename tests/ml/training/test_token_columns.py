"""Columns of the token tables come in the order of a batch; incomplete tables raise."""

import polars as pl
import pytest
import torch

from tests.support.tiny_models import examples
from tokenuq_ml.errors import InputError
from tokenuq_ml.training.token_columns import TokenColumns

ROWS = examples(4)


def table():
    keys = [(row.example_id, position) for row in ROWS for position in row.positions]
    return pl.DataFrame(
        {
            "example_id": [name for name, _ in keys],
            "position": pl.Series([position for _, position in keys], dtype=pl.Int32),
            "loss": pl.Series(range(len(keys)), dtype=pl.Float32),
            "category": ["number", "word"] * (len(keys) // 2) + ["code"] * (len(keys) % 2),
        }
    )


def test_columns_are_in_the_order_of_the_batch():
    shuffled = table().sample(fraction=1.0, shuffle=True, seed=1)
    columns = TokenColumns(["teacher_loss", "category"], {"token_losses": shuffled}, ROWS)
    got = columns.of([ROWS[2], ROWS[0]])
    wanted = pl.concat([table().filter(pl.col("example_id") == ROWS[i].example_id) for i in (2, 0)])
    assert got["teacher_loss"].tolist() == wanted["loss"].to_list()
    from tokenuq_ml.data.token_categories import CATEGORIES

    assert [CATEGORIES[code] for code in got["category"]] == wanted["category"].to_list()
    assert columns.teacher_mean == pytest.approx(table()["loss"].mean())
    assert columns.of([])["teacher_loss"].shape == torch.Size([0])


def test_a_token_without_a_row_or_with_several_raises():
    with pytest.raises(InputError, match=r"token_losses.loss: 1 of \d+ response tokens .* have no row, e.g. toy/"):
        TokenColumns(["teacher_loss"], {"token_losses": table()[1:]}, ROWS)
    double = pl.concat([table(), table()[:1]])
    with pytest.raises(InputError, match="1 have several; materialise token_losses again"):
        TokenColumns(["teacher_loss"], {"token_losses": double}, ROWS)


def test_a_number_that_is_not_finite_is_not_selected_by():
    at = ROWS[1].example_id, ROWS[1].positions[2]
    is_at = (pl.col("example_id") == at[0]) & (pl.col("position") == at[1])
    broken = table().with_columns(loss=pl.when(is_at).then(float("nan")).otherwise("loss"))
    with pytest.raises(InputError, match=rf"token_losses.loss is nan for {at[0]} at {at[1]} \(1 of \d+ tokens\)"):
        TokenColumns(["teacher_loss"], {"token_losses": broken}, ROWS)
