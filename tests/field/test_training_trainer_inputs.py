"""Inputs, outputs and evaluations of a user's Trainer: used, or refused where a change would have no effect."""

import itertools

import pytest
import torch
from transformers import DataCollatorWithFlattening

from tests.support.tiny_models import tiny_model, tiny_peft
from tests.support.trainers import Ours, Plain, assert_same_training, join, rows, trained
from tests.support.training import PAPER
from tokenuq_ml.errors import InputError

pytestmark = pytest.mark.slow


def test_outputs_asked_for_in_training_are_the_models_own():
    """With the dropout masks of the pass that is trained, and without a change of any number."""

    class Asking(Ours):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            logits, labels = outputs.logits[:, :-1], inputs["labels"][:, 1:]
            mean = torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100])
            self.means = [*getattr(self, "means", []), mean.item()]
            return (loss, outputs) if return_outputs else loss

    asking = trained(Asking, model=tiny_peft(dropout=0.3))
    assert_same_training(asking, trained(Ours, model=tiny_peft(dropout=0.3)))
    assert asking.means == pytest.approx(asking.losses, rel=1e-5)


def masked(inputs):
    inputs["labels"][:, :9] = -100
    return inputs


def test_labels_that_training_step_changes_are_refused():
    class InPlace(Ours):
        def training_step(self, model, inputs, num_items_in_batch=None):
            return super().training_step(model, masked(inputs), num_items_in_batch)

    class Replaced(Ours):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, {**inputs, "labels": inputs["labels"].clone()}, *args, **kwargs)

    class Added(Ours):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, {**inputs, "position_ids": inputs["input_ids"]}, *args, **kwargs)

    for kind, name in ((InPlace, "labels"), (Replaced, "labels"), (Added, "position_ids")):
        with pytest.raises(InputError, match=f"^{name}: changed after .* make it in `token_batch`"):
            trained(kind)


def test_labels_that_token_batch_changes_are_trained():
    class Changing(Ours):
        def token_batch(self, inputs):
            return super().token_batch(masked(inputs))

    theirs = trained(Plain, data_collator=lambda batch: masked(join(batch)))
    assert_same_training(trained(Changing), theirs)


def test_a_micro_batch_may_be_passed_through_twice_in_a_step():
    """As adversarial training does; a counter of micro-batches would give the second pass another one's tokens."""

    class Twice(Ours):
        def compute_loss(self, model, inputs, *args, **kwargs):
            super().compute_loss(model, inputs, *args, **kwargs)
            return super().compute_loss(model, inputs, *args, **kwargs)

    options = {"gradient_accumulation_steps": 2}
    assert_same_training(trained(Twice, PAPER, options=options), trained(Ours, PAPER, options=options))


def test_a_loss_in_training_mode_outside_of_training_is_refused():
    trainer = trained()
    batch = join(rows(2))
    trainer.model.train()
    with pytest.raises(InputError, match="compute_loss was called outside train"):
        trainer.compute_loss(trainer.model, batch)
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, batch).item() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.pop("labels"), r"no `labels` \(it has input_ids, attention_mask\), .* DataCollator"),
        (lambda batch: batch.update(labels=None), "no `labels`"),
        (lambda batch: batch.update(labels=batch["labels"][:, 0]), "one label per token"),
        (lambda batch: batch.update(labels=batch["labels"][:, 1:]), "one label per token"),
        (lambda batch: batch.update(shift_labels=batch["labels"]), "`shift_labels`"),
    ],
)
def test_a_batch_without_a_label_for_each_token_is_refused(change, message):
    def collate(examples):
        batch = join(examples)
        change(batch)
        return batch

    with pytest.raises(InputError, match=message):
        trained(data_collator=collate)


def test_columns_that_the_model_does_not_take_are_removed_or_kept_as_the_trainer_does():
    class Reading(Ours):
        def token_batch(self, inputs):
            self.keys = set(inputs)
            return super().token_batch({key: value for key, value in inputs.items() if key != "note"})

    def collate(examples):
        notes = [example["note"] for example in examples if "note" in example]
        return {**join(examples), **({"note": torch.tensor(notes)} if notes else {})}

    def reading(removed):
        dataset = [{**row, "note": 7} for row in rows()]
        options = {"remove_unused_columns": removed}
        return trained(Reading, train_dataset=dataset, data_collator=collate, options=options)

    kept, removed = reading(False), reading(True)
    assert kept.keys - removed.keys == {"note"}
    assert kept.losses == removed.losses == trained().losses


def test_evaluation_stays_the_trainers():
    options = {"prediction_loss_only": True}
    ours, plain = (trained(kind, options=options, eval_dataset=rows(4)) for kind in (Ours, Plain))
    assert ours.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)
    assert ours.predict(rows(4)).predictions is None


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_evaluations_between_steps_are_the_trainers(kind):
    """With a checkpoint for each, and the best one loaded at the end."""
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options = {**steps, "load_best_model_at_end": True, "bf16": kind == "full"}

    def evaluated(trainer_kind):
        model = tiny_peft() if kind == "adapter" else tiny_model().requires_grad_(True)
        trainer = trained(trainer_kind, model=model, options=options, eval_dataset=rows(4))
        between = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(min(between), rel=1e-4)
        return between

    assert evaluated(Ours) == pytest.approx(evaluated(Plain), rel=1e-2 if options["bf16"] else 1e-5)


def test_a_dataset_without_a_length():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return itertools.cycle(rows())

    assert_same_training(*(trained(kind, train_dataset=Endless()) for kind in (Ours, Plain)))


def test_transformers_own_collator_without_padding():
    flat = DataCollatorWithFlattening()
    assert_same_training(*(trained(kind, data_collator=flat) for kind in (Ours, Plain)))
