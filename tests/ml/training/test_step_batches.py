"""Micro-batches are found again by their inputs, and changed inputs are named."""

import pytest
import torch

from tokenuq_ml.errors import InputError
from tokenuq_ml.training.decisions import MicroBatch
from tokenuq_ml.training.step_batches import StepBatches


def inputs():
    return {"labels": torch.zeros(2, 3), "nested": {"mask": torch.ones(2), "lengths": [3, 2]}, "longest": 3}


def of(samples):
    return StepBatches(samples, lambda sample: MicroBatch(batch=sample["labels"], rule=None))


def test_a_micro_batch_is_found_in_any_order_and_more_than_once():
    samples = [inputs(), inputs(), inputs()]
    batches = of(samples)
    assert len(batches) == 3
    for number in (2, 0, 0, 1):
        # Trainer copies the containers, and moves tensors that are on the device already.
        again = {**samples[number], "nested": {**samples[number]["nested"], "lengths": [3, 2]}}
        assert batches.of(again).batch is samples[number]["labels"]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda sample: sample["labels"].fill_(1), "labels"),
        (lambda sample: sample.update(labels=sample["labels"].clone()), "labels"),
        (lambda sample: sample["nested"].update(mask=torch.ones(2)), "nested.mask"),
        (lambda sample: sample.update(longest=4, labels=torch.zeros(1)), "labels, longest"),
        (lambda sample: sample.pop("longest"), "longest"),
        (lambda sample: sample.update(use_cache=False), "use_cache"),
    ],
)
def test_what_changed_is_named(change, names):
    samples = [inputs(), inputs()]
    batches = of(samples)
    change(samples[1])
    with pytest.raises(InputError, match=f"^{names}: changed after the tokens of the optimiser batch"):
        batches.of(samples[1])
    assert batches.of(samples[0])


def test_changes_before_the_micro_batch_is_made_are_part_of_it():
    def make(sample):
        sample["labels"].fill_(1)
        return MicroBatch(batch=sample["labels"], rule=None)

    samples = [inputs()]
    assert StepBatches(samples, make).of(samples[0]).batch.eq(1).all()


def test_tensors_of_inference_mode_are_found_by_identity():
    with torch.inference_mode():
        samples = [inputs()]
    assert of(samples).of(samples[0])


def test_a_batch_and_the_one_after_it_are_prefetched_unless_their_teacher_is_known():
    samples, asked = [inputs(), inputs(), inputs()], []
    batches = StepBatches(samples, lambda sample: MicroBatch(batch=sample["labels"], rule=None), asked.append)
    for sample in samples:
        batches.of(sample)
    first, second, third = (sample["labels"] for sample in samples)
    assert [id(batch) for batch in asked] == [id(batch) for batch in (first, second, second, third, third)]
    asked.clear()
    batches.micro_batches[1].teacher = object()
    batches.of(samples[1])
    assert asked == [third]
