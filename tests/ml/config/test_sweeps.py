"""Sweeps: which names lists expand to, and which lists are refused."""

import pytest

from tokenuq_ml.config import check_name
from tokenuq_ml.config.sweeps import expand


def test_names_are_readable_and_seed_comes_last():
    entry = {"seed": [0, 1], "select": {"by": "loss", "quantile": [0.1, 0.25, 0.125]}, "rest": "none"}
    made = expand("paper_top", entry)
    assert list(made) == [f"paper_top{q}{s}" for q in ("10", "25", "12p5") for s in ("", "_s1")]
    assert made["paper_top12p5_s1"] == {"seed": 1, "select": {"by": "loss", "quantile": 0.125}, "rest": "none"}
    assert entry["seed"] == [0, 1]


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ({"rest": {"distill": {"temperature": [1.0, 2.5]}}}, ["a_temperature1", "a_temperature2p5"]),
        ({"rest": {"distill": {"divergence": ["forward_kl", "jsd"]}}}, ["a_forward_kl", "a_jsd"]),
        ({"rest": {"distill": {"teacher": ["baseline", "base"]}}}, ["a_baseline", "a_base"]),
        ({"lora": {"rank": [8, 16], "dropout": [0.05]}}, ["a_rank8_dropout0p05", "a_rank16_dropout0p05"]),
        ({"columns": ["bald", "entropy"]}, ["a"]),
        ({"seed": 3}, ["a"]),
    ],
)
def test_other_keys_are_named_in_the_suffix(entry, names):
    assert list(expand("a", entry)) == names
    assert all(check_name(name) for name in names)


def test_a_name_that_ends_in_a_digit_keeps_its_number_apart():
    assert list(expand("top_v2", {"select": {"quantile": [0.5]}})) == ["top_v2_q50"]


@pytest.mark.parametrize(
    ("values", "said"),
    [([], "seed: the list is empty"), ([1, 1], "holds a value twice"), ([[1]], "a list of numbers or words")],
)
def test_empty_and_repeating_lists_are_rejected(values, said):
    with pytest.raises(ValueError, match=said):
        expand("a", {"seed": values})
