"""A mix: rows of other datasets by weight, in the splits that they have there, with their origin."""

import json

import pyarrow as pa
import pytest

from tests.support.tiny_datasets import by_split, chat, messages_spec, write_lines
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.mix import load_mix
from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.tables.schemas import TABLES


def write_examples(folder, examples: list[Example]):
    folder.mkdir()
    table = pa.Table.from_pylist([example.row for example in examples], schema=TABLES["examples"].schema)
    write_table(table, "examples", folder, spec_hash="s", code_version="1-s")
    return folder


def make_dataset(tmp_path, name: str, rows: list[dict], sizes):
    spec = messages_spec(write_lines(tmp_path / f"{name}.jsonl", rows), sizes).model_copy(update={"name": name})
    return write_examples(tmp_path / name, load_examples(spec).examples)


def mix_spec(sizes, **weights) -> DatasetSpec:
    return DatasetSpec(name="both", format="mix", mix=weights, sizes=sizes)


@pytest.fixture
def tables(tmp_path):
    sizes = {"train": 40, "validation": 10, "test": 10}
    return {
        name: make_dataset(tmp_path, name, [chat(f"{name} {i}", f"A{i}") for i in range(60)], sizes)
        for name in ("left", "right")
    }


def test_weights_divide_the_rows_of_each_split(tables):
    loaded = load_mix(mix_spec({"train": 20, "validation": 4, "test": 8}, left=3, right=1), tables)
    assert by_split(loaded.examples) == {"train": 20, "validation": 4, "test": 8}
    assert {name: count for name, count in loaded.metrics.items() if name.startswith("rows_")} == {
        **{"rows_train": 20, "rows_validation": 4, "rows_test": 8, "rows_read": 120},
        **{"rows_train_left": 15, "rows_validation_left": 3, "rows_test_left": 6},
        **{"rows_train_right": 5, "rows_validation_right": 1, "rows_test_right": 2},
        **{"rows_broken": 0, "rows_left_out": 0},
    }


def test_rows_keep_their_split_text_and_origin(tables):
    from tokenuq_ml.tables.parquet import read_table

    loaded = load_mix(mix_spec("all", left=1, right=1), tables)
    originals = {row["example_id"]: row for table in tables.values() for row in read_table(table).iter_rows(named=True)}
    assert by_split(loaded.examples) == {"train": 80, "validation": 20, "test": 20}
    for example in loaded.examples:
        origin = example.source["example_id"]
        assert example.id == f"both/{origin}" and origin.startswith(example.source["dataset"])
        assert (example.split, example.messages) == (originals[origin]["split"], originals[origin]["messages"])
        assert json.loads(originals[origin]["source"]).items() <= example.source.items()
    assert len({example.id for example in loaded.examples}) == 120


def test_the_draw_depends_on_neither_the_order_of_weights_nor_of_tables(tables):
    sizes = {"train": 10}
    one = load_mix(mix_spec(sizes, left=1, right=2), tables).examples
    other = load_mix(mix_spec(sizes, right=2, left=1), dict(reversed(tables.items()))).examples
    assert one == other
    assert one != load_mix(mix_spec(sizes, left=1, right=2).model_copy(update={"seed": 1}), tables).examples


def test_all_and_shares_draw_what_the_weights_allow(tables):
    assert by_split(load_mix(mix_spec("all", left=3, right=1), tables).examples) == {
        **{"train": 53, "validation": 13, "test": 13}
    }, "40 rows of left are three quarters of 53"
    half = load_mix(mix_spec({"train": 0.5}, left=1, right=1), tables)
    assert (half.metrics["rows_train_left"], half.metrics["rows_train_right"]) == (20, 20)


def test_no_question_is_in_two_splits_of_a_mix(tmp_path):
    shared = [chat(f"Q{i}", "left") for i in range(10)]
    tables = {
        "left": make_dataset(tmp_path, "left", shared, {"train": 10}),
        "right": make_dataset(tmp_path, "right", [chat(f"q{i}", "right") for i in range(20)], {"train": 8, "test": 8}),
    }
    loaded = load_mix(mix_spec({"train": 0.5, "test": 1.0}, left=1, right=1), tables)
    questions = {split: {e.question for e in loaded.examples if e.split == split} for split in ("train", "test")}
    assert len(questions["test"]) == 8 and questions["train"] and not questions["train"] & questions["test"]
    reasons = {row["reason"] for row in loaded.rejected.rows()}
    assert "in two splits" in reasons and reasons <= {"in two splits", "repeated question"}
    assert {row["file"] for row in loaded.rejected.rows()} <= {"datasets/left", "datasets/right"}
    kept = mix_spec({"train": 0.5}, left=1, right=1).model_copy(update={"duplicates": "conversation"})
    assert load_mix(kept, tables).metrics["rows_left_out"] == 0, "other answers to the same questions"


def test_a_dataset_without_rows_of_a_split_does_not_count_for_it(tmp_path):
    tables = {
        "left": make_dataset(tmp_path, "left", [chat(f"L{i}") for i in range(9)], {"train": 9}),
        "right": make_dataset(tmp_path, "right", [chat(f"R{i}") for i in range(9)], {"train": 5, "test": 4}),
    }
    loaded = load_mix(mix_spec({"train": 8, "test": 4}, left=1, right=1), tables)
    assert loaded.metrics["rows_test_right"] == 4 and loaded.metrics["rows_train_left"] == 4
    with pytest.raises(InputError, match=r"both: its datasets left, right have no rows of split 'validation'"):
        load_mix(mix_spec({"train": 2, "validation": 2}, left=1, right=1), tables)
    with pytest.raises(
        InputError,
        match=r"both: split 'train': dataset right has 5 rows for it, and its weight of 2 asks for 8 of 12; lower",
    ):
        load_mix(mix_spec({"train": 12}, left=1, right=2), tables)


def test_weights_and_tools_of_rows_stay(tmp_path):
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    example = Example("a/1", "train", turns, {}, [0.0, 0.5], {"tools": [{"name": "f"}]})
    loaded = load_mix(mix_spec("all", a=1), {"a": write_examples(tmp_path / "a", [example])})
    (mixed,) = loaded.examples
    assert (mixed.turn_weights, mixed.template) == ([0.0, 0.5], {"tools": [{"name": "f"}]})


def test_a_mix_of_a_mix_names_every_origin_in_its_id(tables, tmp_path):
    inner = load_mix(mix_spec({"train": 4}, left=1, right=1), tables).examples
    outer = DatasetSpec(name="outer", format="mix", mix={"both": 1}, sizes="all")
    loaded = load_mix(outer, {"both": write_examples(tmp_path / "inner", inner)})
    assert {example.id for example in loaded.examples} == {f"outer/{example.id}" for example in inner}
    assert {example.source["dataset"] for example in loaded.examples} == {"both"}
