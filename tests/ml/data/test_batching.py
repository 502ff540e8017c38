"""Batches: reading, padding, packing, shards."""

from dataclasses import replace

import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tests.support.training import MLE, PAPER, training_setup
from tokenuq_ml.data.batching import LengthBucketSampler, collate, length_batches, pack, shards
from tokenuq_ml.kernels.scores import token_losses
from tokenuq_ml.models.forward import head_of, hidden_states, packing_is_exact
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
