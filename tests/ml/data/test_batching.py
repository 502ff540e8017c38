"""Batches: reading, padding, packing, shards."""

from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tests.support.training import MLE, PAPER, training_setup
from tokenuq_ml.data.batching import (
    LengthBucketSampler,
    StoredExamples,
    collate,
    length_batches,
    pack,
    read_examples,
    shards,
)
from tokenuq_ml.kernels.scores import token_losses
from tokenuq_ml.models.forward import head_of, hidden_states, packing_is_exact
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.training.trainer import train


def losses(model, batch):
    return token_losses(
        batch.predicting(hidden_states(model, batch.model_inputs, FLOAT32)), head_of(model), batch.label_N
    )


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_packed_and_padded_losses_are_the_same(kind):
    """Trap 5: without an attention mask, and with position ids, packed sequences do not see each other."""
    model, rows = tiny_model(kind), examples(5)
    packed, padded = pack(rows), collate(rows)
    assert packed.input_ids_BT.shape == (1, sum(len(row.input_ids) for row in rows))
    assert packed.keys == padded.keys and torch.equal(packed.label_N, padded.label_N)
    torch.testing.assert_close(losses(model, packed), losses(model, padded), rtol=1e-4, atol=1e-4)
    assert packing_is_exact(model, FLOAT32)


def test_masks_are_boolean_whatever_their_input():
    """Trap 6: indexed by a mask of ints, hidden states come from positions 0 and 1."""
    rows = examples(3)
    numbers = [replace(row, response_mask=[int(scored) for scored in row.response_mask]) for row in rows]
    hidden_BTD = torch.randn(1, sum(len(row.input_ids) for row in rows), 4)
    for join in (pack, collate):
        expected, got = join(rows), join(numbers)
        assert got.response_BT.dtype == torch.bool and torch.equal(got.response_BT, expected.response_BT)
    assert torch.equal(pack(numbers).predicting(hidden_BTD), pack(rows).predicting(hidden_BTD))


def test_packing_without_ends_of_sequences_is_noticed(monkeypatch):
    """The trap itself: drop the position ids, and documents leak into each other silently."""
    from tokenuq_ml.models import forward

    model, rows = tiny_model(), examples(5)
    leaking = pack(rows)
    object.__setattr__(leaking, "position_ids_BT", None)
    assert (losses(model, leaking) - losses(model, collate(rows))).abs().max() > 0.1
    blind = lambda model, inputs, numerics: hidden_states(model, {"input_ids": inputs["input_ids"]}, numerics)  # noqa: E731
    monkeypatch.setattr(forward, "hidden_states", blind)
    assert not packing_is_exact(model, FLOAT32)


@pytest.mark.parametrize("ablation", [MLE, PAPER], ids=lambda a: a.name)
def test_training_on_packed_batches_changes_nothing(ablation, tmp_path):
    logs = []
    for batching in ("bucket", "pack"):
        s = training_setup(ablation)
        s.train = s.train.model_copy(update={"batching": batching})
        recorder = train(tiny_peft(), s, tmp_path / batching, RecordingReporter(), "x")
        assert recorder.batching == batching
        logs.append(torch.tensor(recorder.training_log()["loss"].to_list()))
    torch.testing.assert_close(*logs, rtol=1e-4, atol=1e-5)


def test_where_packing_is_not_exact_training_pads_and_says_so(tmp_path, monkeypatch):
    from tokenuq_ml.training import trainer

    monkeypatch.setattr(trainer, "packing_is_exact", lambda *_: False)
    s, reporter = training_setup(MLE, epochs=1), RecordingReporter()
    s.train = s.train.model_copy(update={"batching": "pack"})
    assert train(tiny_peft(), s, tmp_path, reporter, "x").batching == "bucket"
    assert any("padded instead" in line for line in reporter.lines)


def test_batches_for_scoring_hold_every_example_once_within_the_limit():
    rows = examples(40)
    for num_workers in (1, 3):
        batches = list(length_batches(rows, 60, num_workers))
        held = [example for batch in batches for example in batch.examples]
        assert sorted(example.example_id for example in held) == [example.example_id for example in rows]
        lengths = [len(example.input_ids) for example in held]
        assert lengths == sorted(lengths, reverse=True)
        assert all(batch.input_ids_BT.numel() <= 60 for batch in batches)
    assert [len(batch.examples) for batch in length_batches(rows, 1, 3)] == [1] * 40


@pytest.mark.parametrize("count", [40, 101, 200])
def test_with_several_workers_the_last_batches_are_smaller(count):
    """Each goes to the thread that has done the fewest tokens; the slowest has little more than its share."""
    rows = examples(count)

    def longest(num_workers):
        done = [0, 0]
        for batch in length_batches(rows, 100, num_workers):
            done[done.index(min(done))] += batch.input_ids_BT.numel()
        return max(done) / (sum(len(row.input_ids) for row in rows) / 2)

    assert longest(2) < 1.05 and longest(2) <= longest(1)


def test_shards_hold_every_example_once_in_order():
    rows = examples(40)
    cut = list(shards(iter(rows), tokens=60))
    assert [row for shard in cut for row in shard] == rows
    assert len(cut) > 3 and all(sum(len(row.positions) for row in shard) >= 60 for shard in cut[:-1])


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


@pytest.mark.parametrize("ranks, micro", [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_ranks_share_every_optimiser_batch(ranks, micro):
    lengths = list(range(1, 12))
    samplers = [LengthBucketSampler(lengths, 4, micro, 7, rank, ranks) for rank in range(ranks)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(own) for own in batches} == {len(sampler) for sampler in samplers} and len(
        {len(b) for b in batches}
    ) == 1
    per_batch = 4 // (micro * ranks)
    for number, expected in enumerate(samplers[0].optimiser_batches(0)):
        parts = [own[number * per_batch : (number + 1) * per_batch] for own in batches]
        assert [index for own in parts for part in own for index in part] == expected


def test_ranks_that_do_not_divide_a_batch_are_rejected():
    with pytest.raises(ValueError, match="batch_size 4 is not a multiple of micro_batch_size 1 times 3 ranks"):
        LengthBucketSampler([1, 2, 3], 4, 1, 0, 0, 3)


def test_the_order_of_batches_depends_only_on_seed_and_epoch():
    lengths = list(range(1, 40))
    a, b = LengthBucketSampler(lengths, 4, 2, 7), LengthBucketSampler(lengths, 4, 2, 7)
    list(a)
    torch.manual_seed(5)
    a.set_epoch(1), b.set_epoch(1)
    assert list(a) == list(b)
    b.set_epoch(0)
    assert list(a) != list(b)
    assert sorted(i for batch in a for i in batch) == list(range(39)) and len(list(a)) == len(a)


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
