"""The contestants of a training step that need nothing but torch, transformers and peft.

All train the same LoRA adapter on the same batch, in bfloat16 on an accelerator, with dropout, AdamW and clipping.
Contestants that are Trainers include the Trainer's own work per step, as a user pays it.

Shapes: B sequences, T positions, N response tokens, V vocabulary.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from benchmarks.accelerator.clock import Measured, StepClock
from benchmarks.accelerator.shapes import Setting, Shape, peers_model, random_rows
from benchmarks.accelerator.specs import QUANTILE
from tokenuq_ml.models.flags import evaluation_mode

LEARNING_RATE, CLIP = 1e-4, 1.0


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Return mixed precision as a Trainer with `bf16=True` uses it; nothing in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def optimiser_of(model: PeftModel, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimiser that transformers' Trainer has by default, of the trained weights."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=device.type == "cuda")


def plain_step(setting: Setting, clock: StepClock) -> Measured:
    """Fine-tune by cross-entropy in ten lines of PyTorch: float32 logits of the response tokens, PEFT's layers."""
    return _loop(setting, clock, _cross_entropy_loss)


def plain_paper_step(setting: Setting, clock: StepClock) -> Measured:
    """Train the paper's objective in twenty lines: an online teacher, and both full distributions in float32."""
    return _loop(setting, clock, _paper_loss)


Loss = Callable[[PeftModel, Tensor, Tensor], Tensor]


def _loop(setting: Setting, clock: StepClock, loss_of: Loss) -> Measured:
    device, dtype = setting.device, setting.dtype
    model = peers_model(setting).train()
    optimiser, trained = optimiser_of(model, device), [p for p in model.parameters() if p.requires_grad]
    ids_BT, labels_BT = (rows.to(device) for rows in random_rows(setting.shape))
    is_response_BT = labels_BT[:, 1:] != -100

    def step() -> None:
        with autocast(device, dtype):
            loss = loss_of(model, ids_BT, is_response_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimiser.step()
        optimiser.zero_grad()

    return clock.run(step)


def _response_logits(model: PeftModel, ids_BT: Tensor, is_response_BT: Tensor) -> Tensor:
    return model(input_ids=ids_BT).logits[:, :-1][is_response_BT].float()


def _cross_entropy_loss(model: PeftModel, ids_BT: Tensor, is_response_BT: Tensor) -> Tensor:
    return cross_entropy(_response_logits(model, ids_BT, is_response_BT), ids_BT[:, 1:][is_response_BT])


def _paper_loss(model: PeftModel, ids_BT: Tensor, is_response_BT: Tensor) -> Tensor:
    with torch.no_grad(), evaluation_mode(model), model.disable_adapter():
        teacher_NV = _response_logits(model, ids_BT, is_response_BT).log_softmax(-1)
    logp_NV = _response_logits(model, ids_BT, is_response_BT).log_softmax(-1)
    loss_N = -logp_NV.gather(-1, ids_BT[:, 1:][is_response_BT][:, None])[:, 0]
    divergence_N = kl_div(logp_NV, teacher_NV, log_target=True, reduction="none").sum(-1)
    threshold = loss_N.detach().quantile(1 - QUANTILE)
    return torch.where(loss_N >= threshold, loss_N, divergence_N).mean()


@contextmanager
def unchanged_modules(setting: Setting) -> Iterator[None]:
    """Undo at the end what Liger puts into transformers' module of the model; later contestants would have it, too."""
    model_type = setting.shape.config["model_type"]
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    before = dict(vars(module))
    classes = [kind for kind in before.values() if isinstance(kind, type) and "forward" in vars(kind)]
    forwards = [kind.forward for kind in classes]
    try:
        yield
    finally:
        vars(module).update(before)
        for kind, forward in zip(classes, forwards, strict=True):
            kind.forward = forward


class Ticks(TrainerCallback):
    """Tells a clock when a Trainer's steps begin and end."""

    def __init__(self, clock: StepClock):
        self.clock = clock

    def on_step_begin(self, *args, **kwargs):
        """Note that a step begins."""
        self.clock.begin_step()

    def on_step_end(self, *args, **kwargs):
        """Note that a step has ended."""
        self.clock.end_step()


def trainer_settings(setting: Setting, clock: StepClock) -> dict[str, Any]:
    """Return the arguments of a Trainer's settings that all contestants share; the others keep their defaults."""
    return {
        "output_dir": str(setting.folder),
        "per_device_train_batch_size": setting.shape.sequences,
        "max_steps": clock.steps,
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": CLIP,
        "bf16": setting.dtype == torch.bfloat16,
        "use_cpu": setting.device.type == "cpu",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1000,
        "save_strategy": "no",
        "dataloader_pin_memory": setting.device.type == "cuda",
    }


def dataset_of(shape: Shape, steps: int) -> list[dict[str, Tensor]]:
    """Return the rows of the batch, once per step."""
    ids_BT, labels_BT = random_rows(shape)
    rows = [{"input_ids": ids_T, "labels": labels_T} for ids_T, labels_T in zip(ids_BT, labels_BT, strict=True)]
    return rows * steps


class InOrder(Trainer):
    """Trainer that takes the rows in their order, so that every step has the same batch."""

    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


def train_and_measure(trainer: Trainer, clock: StepClock) -> Measured:
    """Train a Trainer whose callbacks include `Ticks`, and return the cost of its steps."""
    # It would print the summary between the results.
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.measured()


def trainer_step(setting: Setting, clock: StepClock, **options: Any) -> Measured:
    """Fine-tune by transformers' Trainer, with its own loss; `options` are further ones of its arguments."""
    arguments = TrainingArguments(**trainer_settings(setting, clock), **options)
    trainer = InOrder(
        model=peers_model(setting),
        args=arguments,
        train_dataset=dataset_of(setting.shape, clock.steps),
        callbacks=[Ticks(clock)],
    )
    return train_and_measure(trainer, clock)


def compiled_trainer_step(setting: Setting, clock: StepClock) -> Measured:
    """Fine-tune by transformers' Trainer with `torch_compile`, its only option that fuses without another package."""
    try:
        return trainer_step(setting, clock, torch_compile=True)
    finally:
        # What accelerate reads when a Trainer wraps its model: the next contestant's would be compiled, too.
        os.environ.pop("ACCELERATE_DYNAMO_BACKEND", None)
