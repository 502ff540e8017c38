"""A user's own Trainer on a tiny model, with TokenObjective and without, and its rows and collator."""

import tempfile

import torch
from transformers import Trainer, TrainingArguments

from tests.support.tiny_models import examples, tiny_peft
from tests.support.training import MLE
from tokenuq_ml import TokenObjective


class KeptLosses:
    """Keeps the unrounded loss of each micro-batch, and the gradients of the last."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), loss.item()]
        self.grads = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        return loss


class Recorded:
    """Keeps the loss of each micro-batch and the gradients before each optimiser step."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), float(loss)]
        self.gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        return loss


class RecordedPlain(Recorded, Trainer):
    pass


class RecordedOurs(Recorded, TokenObjective, Trainer):
    pass


class Ours(KeptLosses, TokenObjective, Trainer):
    """With the objective."""


class Plain(KeptLosses, Trainer):
    """As transformers has it."""


def rows(count: int = 8) -> list[dict[str, list[int]]]:
    """Return a user's dataset: ids and labels."""
    masked = lambda e: [t if m else -100 for t, m in zip(e.input_ids, e.response_mask, strict=True)]  # noqa: E731
    return [{"input_ids": list(e.input_ids), "labels": masked(e)} for e in examples(count)]


def join(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Collate as a user would: padded on the right, with an attention mask."""
    longest = max(len(row["input_ids"]) for row in batch)
    padded = lambda values, fill: values + [fill] * (longest - len(values))  # noqa: E731
    return {
        "input_ids": torch.tensor([padded(row["input_ids"], 2) for row in batch]),
        "labels": torch.tensor([padded(row["labels"], -100) for row in batch]),
        "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in batch]),
    }


def arguments(**options) -> TrainingArguments:
    """Return the arguments of three steps on the CPU, with a user's own options."""
    fixed = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
    }
    return TrainingArguments(**{**fixed, **options})


def trainer_of(kind=Ours, ablation=MLE, model=None, options=None, **kwargs):
    """Return a Trainer of a kind over eight rows; `options` are those of `TrainingArguments`."""
    if issubclass(kind, TokenObjective):
        kwargs["ablation"] = ablation
    if "model_init" not in kwargs:
        kwargs["model"] = model or tiny_peft()
    kwargs = {"train_dataset": rows(), "data_collator": join, **kwargs}
    return kind(args=arguments(**(options or {})), **kwargs)


def trained(kind=Ours, ablation=MLE, model=None, options=None, **kwargs):
    """Return the Trainer after its training."""
    trainer = trainer_of(kind, ablation, model, options, **kwargs)
    trainer.train()
    return trainer


def assert_same_training(ours, theirs, rtol: float = 1e-5) -> None:
    """Assert that two Trainers had the same losses, and ended with the same weights."""
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(theirs.losses), rtol=rtol, atol=0)
    for (name, own), (_, other) in zip(ours.model.named_parameters(), theirs.model.named_parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=100 * rtol, atol=100 * rtol, msg=name)
