"""Lengths of a dataset's rows: measured, estimated and assumed."""

import dataclasses
import json

import polars as pl
import pytest

from tests.support import tiny_models
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.costs.lengths import ASSUMED_TOKENS, TURN_TOKENS, lengths, measured_lengths, nothing_generated
from tokenuq_ml.tables.parquet import write_table

DATASET = DatasetSpec(name="d", format="alpaca", path="/nowhere", sizes={"train": 10})


def test_tokenised_data_is_measured(tmp_path):
    made = tiny_models.examples(7, dataset="d")
    rows = [{name: value for name, value in dataclasses.asdict(one).items() if name != "weights"} for one in made]
    write_table(pl.DataFrame(rows), "tokenized_dataset", tmp_path, spec_hash="s", code_version="1-s")
    found = lengths(DATASET, "train", 5, measured_lengths([tmp_path]))
    sizes = [len(example.input_ids) for example in made]
    assert found.rows == 10 and found.tokens == pytest.approx(sum(sizes) / 7)
    assert found.squares == pytest.approx(sum(size**2 for size in sizes) / 7)
    assert found.response == pytest.approx(sum(sum(example.response_mask) for example in made) / 7)


def test_lengths_are_estimated_from_the_first_rows_of_a_file(tmp_path):
    file = tmp_path / "rows.json"
    row = {"instruction": "i" * 40, "input": "", "output": "o" * 80}
    file.write_text(json.dumps([row, {"instruction": 3}, row]))
    spec = DATASET.model_copy(update={"path": str(file)})
    found = lengths(spec, "train", 1000, {})
    assert found.tokens == 40 / 4 + 80 / 4 + 2 * TURN_TOKENS and found.response == 80 / 4 + 1
    assert "estimated from its first 2 rows" in found.origin
    cut = lengths(spec, "train", 23, {})
    assert (cut.tokens, cut.squares) == (23, 23**2) and cut.response == pytest.approx(21 / 2)


def test_lengths_are_assumed_for_the_format_if_no_row_can_be_read():
    found = lengths(DATASET, "train", 100, {})
    assert (found.tokens, found.response, found.squares) == (100, 50, 10_000) and "assumed" in found.origin


def test_a_dataset_is_generated_for_its_lengths_unless_that_takes_too_long(monkeypatch):
    problems = [[{"role": "user", "content": "i" * 50}, {"role": "assistant", "content": "o" * 25}]]
    asked = []
    monkeypatch.setattr(
        "tokenuq_ml.costs.lengths.load.first_conversations", lambda *given: asked.append(given) or problems
    )
    spec = DatasetSpec(name="g", format="reasoning_gym", task="gsm_symbolic", sizes={"train": 10})
    with nothing_generated():
        assert "assumed for format reasoning_gym" in lengths(spec, "train", 100, {}).origin and not asked
        # Rows of a file are read all the same.
        assert "estimated" in lengths(DATASET, "train", 100, {}).origin and len(asked) == 1
    assert "estimated from its first 1 rows" in lengths(spec, "train", 100, {}).origin and len(asked) == 2


def test_every_format_has_assumed_lengths():
    formats = DatasetSpec.model_fields["format"].annotation.__args__
    # A mix has the lengths of its datasets.
    assert {*ASSUMED_TOKENS, "mix"} == set(formats)
