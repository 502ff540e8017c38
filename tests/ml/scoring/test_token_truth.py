"""True distributions come in the order of a batch; rows that are no distributions, or not for each token, raise."""

import polars as pl
import pytest
import torch

from tests.support.tiny_models import FLOAT32, examples, tiny_model
from tests.support.tiny_truth import plain_kl, truth_of
from tokenuq_ml.data.batching import collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.scoring.token_truth import TokenTruth

ROWS = examples(5)
TRUTH = truth_of(ROWS[:4])


def test_distributions_are_those_of_each_token_in_the_order_of_the_batch():
    batch = [ROWS[2], ROWS[0], ROWS[3]]
    truth = TokenTruth(TRUTH).of(batch)
    wanted = [(one.example_id, position) for one in batch for position in one.positions]
    assert truth.is_known_N.all() and len(truth.support_NS) == len(wanted)
    for number, (name, position) in enumerate(wanted):
        row = TRUTH.row(by_predicate=(pl.col("example_id") == name) & (pl.col("position") == position), named=True)
        size = len(row["support"])
        assert truth.support_NS[number, :size].tolist() == row["support"]
        assert truth.probability_NS[number, :size].tolist() == row["probabilities"]
        assert truth.clean_NS[number, :size].tolist() == row["clean_probabilities"]
        assert not truth.probability_NS[number, size:].any()


def test_examples_of_other_data_have_no_truth():
    truth = TokenTruth(TRUTH).of([ROWS[4], ROWS[1]])
    tokens = len(ROWS[4].positions)
    assert not truth.is_known_N[:tokens].any() and truth.is_known_N[tokens:].all()
    assert not truth.probability_NS[:tokens].any()
    nothing = TokenTruth(TRUTH.clear()).of([ROWS[4]])
    assert not nothing.is_known_N.any() and len(TokenTruth(TRUTH).of([]).support_NS) == 0


def test_an_example_with_a_row_for_some_tokens_only_raises():
    at = ROWS[1].example_id, ROWS[1].positions[-1]
    part = TRUTH.filter(~((pl.col("example_id") == at[0]) & (pl.col("position") == at[1])))
    with pytest.raises(InputError, match=rf"no row for token {at[1]} of {at[0]}, .*materialise tokenized_dataset"):
        TokenTruth(part).of([ROWS[1]])


@pytest.mark.parametrize("column", ["probabilities", "clean_probabilities"])
@pytest.mark.parametrize("wrong", [[0.5, 0.4], [1.5, -0.5], [1.0], [], None, [float("nan"), 1.0]])
def test_rows_that_are_no_distributions_raise(wrong, column):
    row = TRUTH[:1].with_columns(
        support=pl.lit([3, 4], pl.List(pl.Int32)),
        probabilities=pl.lit([0.5, 0.5], pl.List(pl.Float64)),
        clean_probabilities=pl.lit([0.0, 1.0], pl.List(pl.Float64)),
    )
    TokenTruth(row)
    with pytest.raises(InputError, match=rf"token_truth.{column} of token \d+ of toy/.* is no distribution"):
        TokenTruth(row.with_columns(pl.Series(column, [wrong], dtype=pl.List(pl.Float64))))


def test_scores_of_examples_have_the_divergence_of_each_token_from_its_truth():
    model = tiny_model()
    scores = score_examples(model, ROWS, FLOAT32, truth=TokenTruth(TRUTH))
    for column, of in (("true_kl", "probabilities"), ("clean_kl", "clean_probabilities")):
        for row in ROWS[:4]:
            batch = collate([row])
            with torch.no_grad():
                logits = model(input_ids=batch.input_ids_BT).logits[0, [position - 1 for position in row.positions]]
            found = scores.filter(example_id=row.example_id).sort("position")[column].to_list()
            assert found == pytest.approx(plain_kl(logits, TRUTH, row, of), rel=1e-4, abs=1e-5)
        assert scores.filter(example_id=ROWS[4].example_id)[column].null_count() == len(ROWS[4].positions)
    assert "true_kl" not in score_examples(model, ROWS, FLOAT32).columns
