"""The token explorer: its packed data read back and compared with the tables, and the choice of its examples."""

import numpy as np
import polars as pl
import pytest

from tests.support import tiny_tables
from tests.support.explorer_data import unpack
from tokenuq_ml.reports import explorer_data, explorer_examples
from tokenuq_ml.reports.explorer import explorer
from tokenuq_ml.reports.explorer_data import ExplorerTables, Students, pack
from tokenuq_ml.reports.explorer_examples import means_of, most_uncertain, prompts_of, within_budget
from tokenuq_ml.stages.correlate import joined_tokens

STEPS = {"mle": (1, 3), "top": (2,)}


@pytest.fixture(scope="module")
def tokens():
    return joined_tokens(*tiny_tables.losses_and_uncertainty())


def students(tokens) -> Students:
    """Two ablations: losses of test and ood, and selections of train, each a number that tells whose it is."""
    train, held_out = tokens.filter(split="train"), tokens.filter(pl.col("split").is_in(["test", "ood"]))
    scored = {
        name: held_out.select("example_id", "position", loss=pl.col("loss") + k) for k, name in enumerate(STEPS, 1)
    }
    selections = {
        name: pl.concat(
            train.select(
                "example_id",
                "position",
                step=pl.lit(step, pl.Int32),
                loss=pl.col("loss") * step,
                selected=(pl.col("position") + step) % 3 == 0,
            )
            for step in steps
        )
        for name, steps in STEPS.items()
    }
    lazily = lambda frames: {name: frame.lazy() for name, frame in frames.items()}  # noqa: E731
    return Students(lazily(scored), lazily(selections))


def tables_of(tokens, prompts=None) -> ExplorerTables:
    alternatives = tiny_tables.alternatives(tokens).lazy()
    return ExplorerTables(tokens.lazy(), alternatives, prompts or {}, students(tokens))


@pytest.fixture(scope="module")
def packed(tokens):
    shown = most_uncertain(tokens.lazy())
    prompts = prompts_of([tiny_tables.examples_table()])
    return shown, *unpack(pack(tables_of(tokens, prompts), shown))


def test_every_token_is_packed_with_its_numbers(tokens, packed):
    shown, header, columns = packed
    assert len(header["examples"]) == len(shown) == 16
    for example in header["examples"]:
        rows = tokens.filter(example_id=example["example_id"]).sort("position")
        assert example["count"] == example["tokens"] == len(rows)
        part = slice(example["first"], example["first"] + example["count"])
        assert [header["texts"][text] for text in columns["text"][part]] == rows["token"].to_list()
        assert [header["categories"][c] for c in columns["category"][part]] == rows["category"].to_list()
        for name in ("position", "rank"):
            assert columns[name][part].tolist() == rows[name].to_list()
        for name in ("loss", "entropy", "bald", "base_loss"):
            # 11 bits of mantissa; below 6e-5 the steps are 6e-8.
            np.testing.assert_allclose(columns[name][part], rows[name], rtol=2**-11, atol=3e-8)
    assert len(set(header["texts"])) == len(header["texts"])


def test_only_held_out_tokens_have_alternatives(tokens, packed):
    _, header, columns = packed
    by_token: dict[int, list] = {}
    for token, text, probability in zip(
        columns["choice_of"], columns["choice_text"], columns["choice_probability"], strict=True
    ):
        by_token.setdefault(int(token), []).append((header["texts"][text], float(probability)))
    for example in header["examples"]:
        tops = [by_token.get(example["first"] + i) for i in range(example["count"])]
        if example["split"] == "train":
            assert tops == [None] * example["count"]
        else:
            rows = tokens.filter(example_id=example["example_id"]).sort("position")
            expected = [[(token, 0.5), ("other", 0.25)] for token in rows["token"]]
            assert tops == expected


def test_students_are_packed_by_model_example_and_step(tokens, packed):
    _, header, columns = packed
    assert header["models"] == ["base", "teacher", *STEPS]
    examples = header["examples"]
    assert {(model, examples[e]["split"]) for model, e, _ in header["scored"]} == {
        (model, split) for model in (2, 3) for split in ("test", "ood")
    }
    for model, e, first in header["scored"]:
        rows = tokens.filter(example_id=examples[e]["example_id"]).sort("position")
        np.testing.assert_allclose(
            columns["student_loss"][first : first + len(rows)], rows["loss"] + model - 1, rtol=2**-10
        )
    assert {(model, step) for model, _, step, _ in header["passes"]} == {(2, 1), (2, 3), (3, 2)}
    assert {examples[e]["split"] for _, e, _, _ in header["passes"]} == {"train"}
    for _, e, step, first in header["passes"]:
        rows = tokens.filter(example_id=examples[e]["example_id"]).sort("position")
        np.testing.assert_allclose(columns["pass_loss"][first : first + len(rows)], rows["loss"] * step, rtol=2**-10)
        assert columns["pass_selected"][first : first + len(rows)].tolist() == [
            int((position + step) % 3 == 0) for position in rows["position"]
        ]


def test_a_long_answer_is_cut_but_its_length_is_given(tokens, monkeypatch):
    monkeypatch.setattr(explorer_data, "MAX_TOKENS", 10)
    shown = most_uncertain(tokens.lazy(), 4)
    header, columns = unpack(pack(tables_of(tokens), shown))
    assert [(e["count"], e["tokens"], e["first"]) for e in header["examples"]] == [
        (10, tiny_tables.LENGTH, 10 * n) for n in range(4)
    ]
    assert len(columns["loss"]) == 40 and len(columns["student_loss"]) == 2 * 2 * 10 and len(columns["pass_loss"]) == 30


def test_the_most_uncertain_examples_are_taken_from_the_splits_in_turn(tokens):
    means = tokens.group_by("example_id", "split").agg(pl.col("bald").mean()).sort("bald", descending=True)
    shown = most_uncertain(tokens.lazy(), 6)
    for split, count in {"test": 2, "validation": 2, "ood": 1, "train": 1}.items():
        expected = means.filter(split=split)["example_id"].head(count).to_list()
        assert shown.filter(split=split)["example_id"].to_list() == expected
    assert most_uncertain(tokens.filter(split="train").lazy(), 6)["split"].to_list() == ["train"] * 4


def test_means_are_over_tokens_in_the_given_order(tokens):
    ids = ["toy/003", "toy/001"]
    means = means_of(tokens.lazy(), ids)
    assert means["example_id"].to_list() == ids
    assert means["loss"].to_list() == pytest.approx([tokens.filter(example_id=i)["loss"].mean() for i in ids])


def test_examples_above_the_budget_are_left_out_but_for_the_first(tokens, monkeypatch):
    shown = most_uncertain(tokens.lazy())
    assert len(within_budget(shown, 2, 5, 3)) == 16
    # Of a test example (22 + 5 x 6 + 2 x 2) bytes per token, of a train example 22 + 2 x 3 x 3.
    monkeypatch.setattr(explorer_examples, "MAX_BYTES", tiny_tables.LENGTH * (56 + 56 + 56 + 40))
    assert within_budget(shown, 2, 5, 3)["split"].to_list() == ["test", "validation", "ood", "train"]
    monkeypatch.setattr(explorer_examples, "MAX_BYTES", tiny_tables.LENGTH * (56 + 56 + 56 + 40) - 1)
    assert within_budget(shown, 2, 5, 3)["split"].to_list() == ["test", "validation", "ood"]
    monkeypatch.setattr(explorer_examples, "MAX_BYTES", 1)
    assert len(within_budget(shown, 2, 5, 3)) == 1


def test_text_from_data_is_only_in_the_packed_data(tokens):
    shown = most_uncertain(tokens.lazy(), 2)
    prompts = {example_id: "<script>alert(1)</script>" for example_id in shown["example_id"]}
    fragment = explorer(tables_of(tokens, prompts), shown)
    assert "alert" not in fragment and "<i>&" not in fragment
    assert fragment.count("</script>") == 1


def test_the_same_tables_give_the_same_bytes(tokens):
    shown = most_uncertain(tokens.lazy(), 3)
    one, other = (pack(tables_of(tokens), shown) for _ in range(2))
    assert one == other
