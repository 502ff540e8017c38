"""Examples of a stored table: read again, from a place, with weights."""

from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.tiny_models import examples
from tokenuq_ml.data.batching import collate, pack
from tokenuq_ml.data.stored_examples import StoredExamples, read_examples
from tokenuq_ml.tables.parquet import write_table


def stored(folder, rows):
    """A `tokenized_dataset` of `rows`."""
    names = ("example_id", "dataset", "split", "input_ids", "response_mask")
    frame = pl.DataFrame([{name: getattr(row, name) for name in names} for row in rows])
    write_table(frame, "tokenized_dataset", folder, spec_hash="s", code_version="c")
    return StoredExamples(folder)


def as_lists(row):
    return row.example_id, row.dataset, row.split, list(row.input_ids), list(row.response_mask), row.positions


def test_stored_examples_are_read_again_on_each_pass(tmp_path):
    """More than are read at a time, so that the borders between reads are crossed."""
    rows = examples(600) + examples(3, "validation")
    source = stored(tmp_path, rows[::-1])
    assert [as_lists(row) for row in source] == [as_lists(row) for row in rows] == [as_lists(row) for row in source]
    assert len(read_examples(tmp_path)) == 603
    assert [row.example_id for row in StoredExamples(tmp_path, ["validation"])] == [r.example_id for r in rows[600:]]


def test_a_stored_example_holds_its_own_tokens_and_no_more(tmp_path):
    first = next(iter(stored(tmp_path, examples(20))))
    assert first.input_ids.base is None and first.input_ids.dtype == np.int32
    assert first.response_mask.base is None and first.response_mask.dtype == bool


@pytest.mark.parametrize("join", [collate, pack])
def test_batches_of_stored_examples_are_those_of_lists(tmp_path, join):
    rows = examples(5)
    expected, got = join(rows), join(list(stored(tmp_path, rows)))
    assert got.keys == expected.keys
    for name in ("input_ids_BT", "response_BT", "position_ids_BT"):
        one, other = getattr(got, name), getattr(expected, name)
        assert one is other is None or (one.dtype == other.dtype and torch.equal(one, other))


def test_token_weights_are_read_if_the_table_has_them(tmp_path):
    rows = [
        replace(row, weights=[0.5] * len(row.input_ids) if number else None) for number, row in enumerate(examples(3))
    ]
    rows[2].weights[-1] = 2.0
    frame = pl.DataFrame(
        [(r.example_id, r.dataset, r.split, r.input_ids, r.response_mask, r.weights) for r in rows],
        schema=["example_id", "dataset", "split", "input_ids", "response_mask", "token_weight"],
        orient="row",
    )
    write_table(frame, "tokenized_dataset", tmp_path, spec_hash="s", code_version="c")
    read = read_examples(tmp_path)
    assert [None if r.weights is None else list(r.weights) for r in read] == [r.weights for r in rows]
    counts = [len(row.positions) for row in rows]
    expected = [1.0] * counts[0] + [0.5] * (counts[1] + counts[2] - 1) + [2.0]
    assert collate(read).weight_N.tolist() == pack(read).weight_N.tolist() == expected
    assert collate(read[:1]).weight_N is None and collate([]).weight_N is None
    # A file of an earlier version lacks the column.
    frame.drop("token_weight").write_parquet(tmp_path / "part-0.parquet")
    assert [r.weights for r in read_examples(tmp_path)] == [None] * 3


@pytest.mark.parametrize(("first", "count"), [(0, 5), (3, 400), (250, 7), (511, 150), (640, None), (700, 1)])
def test_rows_of_a_table_are_read_from_a_place(tmp_path, first, count):
    """From the first, the middle and the last row group, and across their borders."""
    rows = examples(700)
    path = stored(tmp_path, rows).folder / "part-0.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=250)
    ends = None if count is None else first + count
    found = [as_lists(row) for row in StoredExamples(tmp_path, first=first, count=count)]
    assert found == [as_lists(row) for row in rows[first:ends]]
