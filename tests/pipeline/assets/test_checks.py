"""Asset checks on hand-made tables: one that must pass, and one for each fault that the check must find."""

import pytest

from tests.support.manifests import complete
from tests.support.tiny_store import manifest, put
from tokenuq_ml.data.examples import Example
from tokenuq_pipeline.assets import data_checks, uncertainty_checks
from tokenuq_pipeline.runtime.store import Store

T, F = True, False
TOKENS = [("e0", "train", 1), ("e0", "train", 2), ("e1", "test", 2)]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def put_tokenized(store):
    put(
        store,
        "tokenized_dataset",
        [
            {"example_id": example, "dataset": "d", "split": split, "input_ids": [7, 8, 9], "response_mask": mask}
            for example, split, mask in (("e0", "train", [F, T, T]), ("e1", "test", [F, F, T]))
        ],
    )


def losses(tokens=TOKENS, **values):
    row = {
        "dataset": "d",
        "token_id": 8,
        "token": "a",
        "category": "word",
        "loss": 1.0,
        "entropy": 1.0,
        "rank": 0,
        "base_loss": 1.0,
        "base_entropy": 1.0,
        **values,
    }
    return [{"example_id": e, "split": s, "position": p, **row} for e, s, p in tokens]


def uncertainty(tokens=TOKENS, **values):
    row = {"predictive_entropy": 1.0, "expected_entropy": 0.9, "bald": 0.1, "bald_std_error": 0.01}
    row |= {"mc_loss": 1.0, "n_samples": 5, **values}
    return [{"example_id": e, "position": p, **row} for e, _, p in tokens]


@pytest.mark.parametrize(
    "tokens, passed",
    [
        (TOKENS, True),
        (TOKENS[:2], False),  # one is missing
        ([*TOKENS, ("e1", "test", 1)], False),  # a prompt token
        ([*TOKENS, ("e1", "test", 3)], False),  # past the end: padding
        ([*TOKENS, TOKENS[0]], False),  # twice
        ([*TOKENS[:2], ("e1", "train", 2)], False),  # of another split
    ],
)
def test_one_row_per_response_token(store, tokens, passed):
    put_tokenized(store)
    put(store, "token_losses", losses(tokens))
    assert data_checks.one_row_per_response_token(store, "s").passed is passed


@pytest.mark.parametrize(
    "splits, ids, passed",
    [
        (("train", "test", "ood"), ([1, 2], [1, 3], [1, 2, 3]), True),
        (("train", "train", "test"), ([1, 2], [1, 2], [3]), True),  # twice in train is no leak
        (("train", "test", "ood"), ([1, 2], [3], [1, 2]), False),
    ],
)
def test_no_tokens_in_two_splits(store, splits, ids, passed):
    rows = [
        {"example_id": f"d/{n}", "dataset": "d", "split": split, "input_ids": i, "response_mask": [True] * len(i)}
        for n, (split, i) in enumerate(zip(splits, ids, strict=True))
    ]
    put(store, "tokenized_dataset", rows, study="s")
    result = data_checks.no_tokens_in_two_splits(store, "s")
    assert result.passed is passed
    assert ("first" in result.metadata) is not passed


@pytest.mark.parametrize("question, passed", [("other?", True), ("  How\nMANY? ", False)])
def test_no_question_in_two_splits(store, question, passed):
    put(
        store,
        "examples",
        [
            {
                "example_id": f"d/{split}",
                "split": split,
                "source": "{}",
                "messages": [
                    {"role": "system", "content": "the same"},
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": "3"},
                ],
            }
            for split, text in (("train", "How many?"), ("test", question))
        ],
        dataset="d",
    )
    assert data_checks.no_question_in_two_splits(store, "d").passed is passed


@pytest.mark.parametrize("text, passed", [("other", True), ("The  SAME text", False)])
def test_no_raw_text_is_in_two_splits(store, text, passed):
    texts = {"train": "the same text", "test": text}
    examples = [Example(f"d/{split}", split, [{"role": "text", "content": one}]) for split, one in texts.items()]
    put(store, "examples", [example.row for example in examples], dataset="d")
    assert data_checks.no_question_in_two_splits(store, "d").passed is passed


@pytest.mark.parametrize("question, passed", [("other?", True), ("  How\nMANY? ", False)])
def test_the_question_may_come_after_turns_that_all_rows_share(store, question, passed):
    examples = [
        Example(
            f"d/{split}",
            split,
            [
                {"role": ("user", "assistant")[i % 2], "content": each}
                for i, each in enumerate(("Shared?", "Yes", text, "3"))
            ],
            {"question_turn": 2},
        )
        for split, text in (("train", "How many?"), ("test", question))
    ]
    put(store, "examples", [example.row for example in examples], dataset="d")
    assert (examples[0].question != examples[1].question) is passed
    assert data_checks.no_question_in_two_splits(store, "d").passed is passed


@pytest.mark.parametrize(
    "values, passed",
    [
        ({}, True),
        ({"loss": float("nan")}, False),
        ({"base_loss": float("inf")}, False),
        ({"entropy": None}, False),
        ({"loss": -0.1}, False),
        ({"entropy": -1e-6}, True),
    ],
)
def test_losses_finite(store, values, passed):
    put(store, "token_losses", losses(**values))
    assert data_checks.losses_finite(store, "s").passed is passed


@pytest.mark.parametrize(
    "values, passed",
    [
        ({}, True),
        ({"bald": -1e-6}, True),
        ({"bald": -1e-4}, False),
        ({"bald": 1.000005}, True),
        ({"bald": 1.1}, False),
        ({"bald": float("nan")}, False),
        ({"bald": None}, False),
    ],
)
def test_uncertainty_bounds(store, values, passed):
    put(store, "token_uncertainty", uncertainty(**values))
    assert uncertainty_checks.uncertainty_bounds(store, "s").passed is passed


def put_noise(store, bald, float64, categories=("word",) * 3):
    """BALD of the three tokens, and in float64 of as many of them as are given."""
    put(store, "token_losses", [{**row, "category": c} for row, c in zip(losses(), categories, strict=True)])
    put(store, "token_uncertainty", [{**row, "bald": b} for row, b in zip(uncertainty(), bald, strict=True)])
    keys = [{"example_id": e, "position": p} for e, _, p in TOKENS[: len(float64)]]
    rows = [{**key, "bald": b, "bald_float64": f} for key, b, f in zip(keys, bald, float64, strict=False)]
    put(store, "bald_reference", rows)


@pytest.mark.parametrize(
    "bald, float64, passed",
    [
        ([1e-3, 1e-3, 1e-3], [1.04e-3, 0.96e-3], True),  # differences count by size, whatever their sign
        ([1e-3, 1e-3, 1e-3], [1.06e-3, 0.94e-3], False),
        ([1e-3, 1e-3, 1e-6], [1.04e-3, 0.96e-3], False),  # of the mean of all tokens, not of the sample's
        ([0.0, 0.0, 0.0], [0.0, 0.0], False),  # nothing was dropped
    ],
)
def test_bald_above_noise(store, bald, float64, passed):
    put_noise(store, bald, float64)
    result = uncertainty_checks.bald_above_noise(store, "s")
    assert result.passed is passed and result.severity.value == "ERROR"
    floor = sum(abs(a - b) for a, b in zip(bald, float64, strict=False)) / 2
    assert result.metadata["noise_floor"].value == pytest.approx(floor, rel=1e-4)
    assert result.metadata["mean_bald"].value == pytest.approx(sum(bald) / 3, rel=1e-4)
    assert f"{floor:.2g} nats" in result.description and f"{sum(bald) / 3:.2g} nats" in result.description


def test_without_a_bald_reference_the_check_names_what_to_materialise(store):
    put(store, "token_losses", losses())
    put(store, "token_uncertainty", uncertainty())
    for check in (uncertainty_checks.bald_above_noise, uncertainty_checks.bald_above_noise_by_category):
        result = check(store, "s")
        assert not result.passed and "materialise s/token_uncertainty again" in result.description


def test_noise_in_one_category_warns(store):
    put_noise(store, [1e-2, 1e-4, 1e-2], [1e-2, 1.2e-4], ("word", "number", "word"))
    assert uncertainty_checks.bald_above_noise(store, "s").passed
    result = uncertainty_checks.bald_above_noise_by_category(store, "s")
    assert not result.passed and result.severity.value == "WARN"
    assert result.description.startswith("number: noise floor 2e-05 of 0.0001 nats (20.00%")
    assert "word" not in result.description
    assert result.metadata["noise_share_number"].value == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize(
    "tokens, passed",
    [(TOKENS, True), (TOKENS[:2], False), ([*TOKENS, ("e9", "train", 1)], False), ([*TOKENS, TOKENS[0]], False)],
)
def test_joins_one_to_one(store, tokens, passed):
    put(store, "token_losses", losses())
    put(store, "token_uncertainty", uncertainty(tokens))
    assert uncertainty_checks.joins_one_to_one(store, "s").passed is passed


@pytest.mark.parametrize("passed", [True, False, None])
def test_cached_teacher_matches_online(store, passed):
    """The child's word stands; where it said nothing, the check fails."""
    outcome = {"passed": passed, "description": "0.01 apart", "figures": {"error": 0.01}}
    checks = {} if passed is None else {"cached_teacher_matches_online": outcome}
    complete(store, manifest("s/teacher_hidden", checks=checks))
    result = data_checks.cached_teacher_matches_online(store, "s")
    assert result.passed is bool(passed)
    assert result.description == ("the stage did not compare them" if passed is None else "0.01 apart")
