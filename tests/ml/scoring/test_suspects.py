"""Suspect tokens and examples: scores by hand, a wrong label on top, changes of loss, selections."""

import math

import numpy as np
import polars as pl
import pytest

from tokenuq_ml.scoring.suspects import (
    AGGREGATES,
    TOKEN_SCORES,
    example_scores,
    loss_changes,
    selected_shares,
    token_scores,
)


def tokens(rows: list[tuple]) -> pl.DataFrame:
    """Rows of example_id, position, p(label), entropy, rank, base loss, bald."""
    names = ["example_id", "position", "p", "entropy", "rank", "base_loss", "bald"]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    return frame.with_columns(loss=-pl.col("p").log(), base_entropy=pl.lit(1.0))


TWO = tokens([("a", 3, 0.01, 0.1, 1, 2.0, 0.4), ("a", 4, 0.9, 0.3, 0, 0.5, 0.1)])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", [-math.log(0.01), -math.log(0.9)]),
        ("self_confidence", [0.99, 0.1]),
        # The likeliest token has at least exp(-0.1); the second label is the likeliest itself.
        ("margin", [math.exp(-0.1) - 0.01, 0.0]),
        ("excess", [-math.log(0.01) - 0.1, -math.log(0.9) - 0.3]),
        # Of two tokens, the one with more BALD has the quantile 3/4, the other 1/4.
        ("loss_low_bald", [-math.log(0.01) / 4, -math.log(0.9) * 3 / 4]),
        ("excess_low_bald", [(-math.log(0.01) - 0.1) / 4, 0.0]),
        ("worsened", [-math.log(0.01) - 2, -math.log(0.9) - 0.5]),
        ("base_loss", [2.0, 0.5]),
        ("base_excess", [1.0, -0.5]),
    ],
)
def test_scores_of_tokens_by_hand(name, expected):
    found = token_scores(TWO, name)
    assert found.columns == ["example_id", "position", "score"]
    assert found["score"].to_list() == pytest.approx(expected)


def test_every_score_is_tested_by_hand():
    (mark,) = test_scores_of_tokens_by_hand.pytestmark
    assert {name for name, _ in mark.args[1]} == set(TOKEN_SCORES)


def test_the_margin_is_a_lower_bound_of_confident_learnings():
    """Against full distributions: the likeliest other token's probability minus the label's."""
    draw = np.random.default_rng(0)
    for _ in range(200):
        p = draw.dirichlet(np.full(8, 0.3)) + 1e-12
        label = int(draw.integers(8))
        rank, entropy = int((p > p[label]).sum()), float(-(p * np.log(p)).sum())
        found = token_scores(tokens([("a", 0, p[label], entropy, rank, 1.0, 0.1)]), "margin")["score"][0]
        assert 0 <= found <= max(0.0, np.delete(p, label).max() - p[label]) + 1e-9


def test_aggregates_by_hand():
    scores = pl.DataFrame(
        {"example_id": ["a"] * 6 + ["b"], "position": [*range(6), 0], "score": [6.0, 1, 5, 2, 4, 3, 7]}
    )
    found = {name: example_scores(scores, name)["score"].to_list() for name in AGGREGATES}
    assert found == {"mean": [3.5, 7.0], "max": [6.0, 7.0], "top3": [5.0, 7.0], "top5": [4.0, 7.0]}


def test_a_confident_disagreement_outranks_a_long_uncertain_answer():
    wrong = [("wrong", position, 0.9, 0.3, 0, 0.5, 0.01) for position in range(20)]
    wrong[10] = ("wrong", 10, 1e-4, 0.05, 3, 4.0, 0.01)
    # Every token as unlikely as the teacher expects.
    unsure = [("unsure", position, 0.05, 3.0, 4, 3.5, 0.2) for position in range(20)]
    ranked = example_scores(token_scores(tokens([*wrong, *unsure]))).sort("score", descending=True)
    assert ranked["example_id"].to_list() == ["wrong", "unsure"]
    by_mean_loss = example_scores(token_scores(tokens([*wrong, *unsure]), "loss"), "mean")
    assert by_mean_loss.sort("score", descending=True)["example_id"][0] == "unsure"


def test_changes_of_loss_are_measured_from_the_median_example():
    rows = [
        (f"e{number}", 0, math.exp(-1.0), 1.0, 0, 2.0 + change, 0.1) for number, change in enumerate((-0.1, 0, 0.1, 3))
    ]
    found = loss_changes(tokens(rows))
    assert found["change"].to_list() == pytest.approx([0.9, 1.0, 1.1, 4.0])
    # The median is 1.05; the distances are 0.15, 0.05, 0.05 and 2.95, with the median 0.1.
    assert found["change_score"].to_list() == pytest.approx([x / (1.4826 * 0.1) for x in (0.15, 0.05, 0.05, 2.95)])


def test_equal_changes_are_no_outliers():
    rows = [(name, 0, 0.5, 1.0, 0, 2.0, 0.1) for name in "abc"]
    assert loss_changes(tokens(rows))["change_score"].to_list() == [0.0] * 3


def test_selected_shares_ignore_ablations_that_select_everything():
    def selections(chosen: dict[tuple[str, int], list[bool]]) -> pl.LazyFrame:
        rows = [(*key, selected) for key, steps in chosen.items() for selected in steps]
        return pl.LazyFrame(rows, schema=["example_id", "position", "selected"], orient="row")

    keys = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    tables = {
        "mle": selections({key: [True, True] for key in keys}),
        "top": selections(
            {("a", 0): [False, True], ("a", 1): [False] * 2, ("b", 0): [False] * 2, ("b", 1): [False] * 2}
        ),
        "other": selections({("a", 0): [True], ("a", 1): [True], ("b", 0): [False], ("b", 1): [False]}),
    }
    shares, partial = selected_shares(tables)
    assert partial == ["top", "other"]
    assert dict(shares.iter_rows()) == {"a": 1.0, "b": 0.0}
    shares, partial = selected_shares({"mle": tables["mle"]})
    assert partial == [] and shares.is_empty()
