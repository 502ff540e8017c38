"""The objective as a mixin over a user's own Trainer, with its own data, collator and loop."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.support.tiny_models import examples, tiny_model, tiny_peft
from tests.support.training import MASKED, MLE, PAPER, plain_objective
from tokenuq_ml import SeparateTeacher, TokenObjective
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.data.batching import collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.training.teacher import OnlineTeacher, TeacherSource


class MyTrainer(TokenObjective, Trainer):
    """A Trainer that keeps the loss of each micro-batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses = []

    def training_step(self, *args, **kwargs):
        self.losses.append(super().training_step(*args, **kwargs).item())
        return torch.tensor(self.losses[-1])


def rows(count=8):
    masked = lambda e: [t if m else -100 for t, m in zip(e.input_ids, e.response_mask, strict=True)]  # noqa: E731
    return [{"input_ids": e.input_ids, "labels": masked(e)} for e in examples(count)]


def collator(side):
    """A user's collator: pads with the pad id and -100 on a side, and adds an attention mask."""

    def join(batch):
        longest = max(len(row["input_ids"]) for row in batch)

        def padded(values, fill):
            gap = [fill] * (longest - len(values))
            return gap + values if side == "left" else values + gap

        return {
            "input_ids": torch.tensor([padded(row["input_ids"], 2) for row in batch]),
            "labels": torch.tensor([padded(row["labels"], -100) for row in batch]),
            "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in batch]),
        }

    return join


def trainer_of(folder, model, ablation, micro=8, side="right", **kwargs):
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=8 // micro,
        max_steps=1,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    return MyTrainer(
        model=model, args=arguments, train_dataset=rows(), data_collator=collator(side), ablation=ablation, **kwargs
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("ablation", [MLE, MASKED, PAPER], ids=lambda a: a.name)
def test_the_loss_is_the_objective_of_the_batch(ablation, side, tmp_path):
    trainer = trainer_of(tmp_path, tiny_peft(), ablation, side=side)
    trainer.train()
    expected = plain_objective(tiny_peft(), collate(examples(8)), ablation).item()
    assert trainer.losses[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("ablation", [MLE, PAPER], ids=lambda a: a.name)
def test_the_micro_batch_size_does_not_change_losses_and_weights(ablation, tmp_path):
    whole, split = trainer_of(tmp_path, tiny_peft(), ablation), trainer_of(tmp_path, tiny_peft(), ablation, micro=2)
    whole.train(), split.train()
    assert sum(split.losses) == pytest.approx(whole.losses[0], rel=1e-5)
    assert whole.selection_seconds == 0
    assert (split.selection_seconds > 0) == (ablation is PAPER)
    for ours, theirs in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_an_ablation_may_be_a_dict_as_in_the_yaml(tmp_path):
    entry = {"select": {"by": "loss", "quantile": 0.25}, "rest": {"distill": {}}}
    trainer = trainer_of(tmp_path, tiny_peft(), entry)
    trainer.train()
    expected = plain_objective(tiny_peft(), collate(examples(8)), PAPER).item()
    assert trainer.losses[0] == pytest.approx(expected, rel=1e-4)


def test_a_student_without_adapter_learns_from_a_separate_teacher(tmp_path):
    """All parameters get gradients, the head's included, and the teacher keeps its own head."""
    student, teacher = tiny_model(seed=1).requires_grad_(True), tiny_model(seed=2)
    batch = collate(examples(8))
    logits = student(batch.input_ids_BT).logits[:, :-1][batch.response_BT[:, 1:]]
    other = teacher(batch.input_ids_BT).logits[:, :-1][batch.response_BT[:, 1:]]
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), other.log_softmax(-1), log_target=True, reduction="none")
    expected = kl.sum() / batch.tokens
    expected.backward()
    reference = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    grads = {}
    ablation = {"select": "all", "selected": {"distill": {}}}
    trainer = trainer_of(tmp_path, student, ablation, teacher=SeparateTeacher(teacher))
    trainer.args.max_grad_norm = 0
    step = Trainer.training_step

    def kept(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        grads.update({name: p.grad.clone() for name, p in student.named_parameters()})
        return loss

    Trainer.training_step = kept
    try:
        trainer.train()
    finally:
        Trainer.training_step = step
    assert trainer.losses[0] == pytest.approx(expected.item(), rel=1e-4)
    for name, grad in reference.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-5)


def test_a_users_own_teacher_source_needs_only_states(tmp_path):
    class OwnTeacher(TeacherSource):
        def states(self, model, batch):
            return OnlineTeacher().states(model, batch)

    trainer = trainer_of(tmp_path, tiny_peft(), PAPER, teacher=OwnTeacher())
    trainer.train()
    expected = plain_objective(tiny_peft(), collate(examples(8)), PAPER).item()
    assert trainer.losses[0] == pytest.approx(expected, rel=1e-4)


def test_record_gets_what_was_computed_for_each_micro_batch(tmp_path):
    trainer, recorded = trainer_of(tmp_path, tiny_peft(), PAPER, micro=2), []
    trainer.record = lambda batch, out, tokens_of_step: recorded.append((batch, out, tokens_of_step))
    trainer.train()
    tokens = sum(len(example.positions) for example in examples(8))
    assert len(recorded) == 4
    assert all(tokens_of_step == tokens for _, _, tokens_of_step in recorded)
    assert sum(batch.tokens for batch, _, _ in recorded) == tokens
    assert sum(int(out.selected_N.sum()) for _, out, _ in recorded) == count_selected(0.25, tokens)
    for _, out, _ in recorded:
        assert torch.equal(out.weights.mle_N > 0, out.selected_N)
        assert torch.equal(out.weights.distill_N > 0, ~out.selected_N)


def test_distilling_without_adapter_or_teacher_raises(tmp_path):
    with pytest.raises(InputError, match="pass teacher=SeparateTeacher"):
        trainer_of(tmp_path, tiny_model().requires_grad_(True), PAPER)


def test_a_teacher_that_is_no_teacher_source_raises(tmp_path):
    class States:
        def states(self, model, batch):
            raise AssertionError("asked although it was refused")

    with pytest.raises(InputError, match="teacher is a States, which has no `form` and `head`"):
        trainer_of(tmp_path, tiny_peft(), PAPER, teacher=States())


def test_evaluation_uses_the_trainers_own_loss(tmp_path):
    trainer = trainer_of(tmp_path, tiny_peft(), PAPER)
    trainer.eval_dataset = rows()
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    assert loss > 0 and loss != pytest.approx(trainer.losses[0])


@pytest.mark.slow
def test_trl_sft_trainer_gets_the_objective(tmp_path):
    """With SFTTrainer's own data handling; needs TRL (extra `bench`)."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from tests.support.tiny_tokenizer import tiny_tokenizer

    class Sft(TokenObjective, trl.SFTTrainer):
        pass

    ids = [{"input_ids": e.input_ids, "completion_mask": [int(m) for m in e.response_mask]} for e in examples(8)]
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        max_steps=1,
        bf16=False,
        completion_only_loss=True,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = Sft(
        model=tiny_peft(),
        args=arguments,
        train_dataset=Dataset.from_list(ids),
        processing_class=tiny_tokenizer(),
        ablation=PAPER,
    )
    result = trainer.train()
    expected = plain_objective(tiny_peft(), collate(examples(8)), PAPER).item()
    assert result.training_loss == pytest.approx(expected, rel=1e-3)
