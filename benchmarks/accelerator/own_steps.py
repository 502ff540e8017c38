"""The contestants of a training step that are ours: `TokenObjective` over transformers' Trainer.

Shapes: N response tokens, D hidden size.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from benchmarks.accelerator.clock import Measured, StepClock
from benchmarks.accelerator.shapes import Setting, own_model, random_rows
from benchmarks.accelerator.steps import (
    InOrder,
    Ticks,
    autocast,
    dataset_of,
    train_and_measure,
    trainer_settings,
    unchanged_modules,
)
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.training_loss import TrainingLoss
from tokenuq_ml.kernels.weight_rule import BatchDecision, WeightRule
from tokenuq_ml.models.adapters import use_adapter
from tokenuq_ml.models.flags import evaluation_mode
from tokenuq_ml.models.forward import head_of, hidden_states
from tokenuq_ml.training.phase_clock import PhaseClock
from tokenuq_ml.training.prefetched_rows import PrefetchedRows
from tokenuq_ml.training.teacher import OnlineTeacher, TeacherSource
from tokenuq_ml.training.token_batch import LabelledInputs, TokenBatch
from tokenuq_ml.training.token_objective import TokenObjective
from tokenuq_ml.transfers import HostCopy

Form = Literal["mean_embeddings", "hidden_states", "online"]


def cached_form(setting: Setting) -> Form:
    """Return the form in which a study caches the teacher of such a model."""
    return "hidden_states" if setting.shape.soft_caps else "mean_embeddings"


class FileTeacher(TeacherSource):
    """Teacher whose states of the one batch are in a file, read as `CachedTeacher` does, whose index needs polars.

    Args:
        states: of the batch's N response tokens, on the CPU.
        setting: the device, and the folder of the file.
    """

    def __init__(self, states: TeacherStates, setting: Setting):
        self.form = "mean_embeddings" if states.hidden_ND is None else "hidden_states"
        tensors = {name: column for name, column in states._asdict().items() if column is not None}
        path = setting.folder / "states.safetensors"
        save_file(tensors, path)
        self._file = safe_open(path, framework="pt")
        self._rows = PrefetchedRows({name: self._file.get_slice(name) for name in tensors}, setting.device)
        rows = setting.shape.response_tokens // setting.shape.sequences
        self._spans = [(number * rows, rows) for number in range(setting.shape.sequences)]

    def prefetch(self, batch: TokenBatch) -> None:
        """Begin to copy the states to a GPU."""
        self._rows.start("batch", self._spans)

    def states(self, model: PeftModel, batch: TokenBatch) -> TeacherStates:
        """Return the states on the device."""
        return TeacherStates(**self._rows.take("batch", self._spans))


@torch.no_grad()
def cached_states(model: PeftModel, setting: Setting, form: Form) -> TeacherStates:
    """Return the states of the model without its adapter, as a teacher's cache stores them."""
    device = setting.device
    ids_BT, labels_BT = (rows.to(device) for rows in random_rows(setting.shape))
    batch, head = LabelledInputs({"input_ids": ids_BT, "labels": labels_BT}), head_of(model)
    with use_adapter(model, None), evaluation_mode(model), autocast(device, setting.dtype):
        hidden_ND = batch.predicting(hidden_states(model, batch.model_inputs))
    if form == "hidden_states":
        return TeacherStates(hidden_ND.cpu())
    means = mean_embeddings(hidden_ND, head).states(hidden_ND)
    return TeacherStates(*(None if column is None else column.cpu() for column in means))


class TimedRule:
    """A rule whose decision is a phase of the Trainer's clock."""

    def __init__(self, rule: WeightRule, clock: PhaseClock):
        self.rule, self.clock = rule, clock

    @property
    def needs_losses(self) -> bool:
        """Whether the rule needs the losses."""
        return self.rule.needs_losses

    def decide(self, loss_N: Tensor) -> BatchDecision:
        """Return the rule's decision."""
        with self.clock.phase("selection"):
            return self.rule.decide(loss_N)


class MeasuredTrainer(TokenObjective, InOrder):
    """Trainer with the objective as a study's students have it: no metrics of its own, a record of every token."""

    logs_metrics = False
    records_losses = True
    applied_keys = frozenset({"lora", "rank_growth", "train", "budget"})

    last: HostCopy | None = None

    def record(self, batch: Any, out: TrainingLoss, tokens_of_step: int) -> None:
        """Bring to the host what a study writes of the step; that of the step before has arrived by now."""
        if self.last is not None:
            self.last.wait()
        self.last = HostCopy(out.total, out.loss_N, out.divergence_N, *out.weights, out.selected_N)

    def _undecided(self, batch: TokenBatch):
        micro_batch = super()._undecided(batch)
        micro_batch.rule = TimedRule(micro_batch.rule, self.clock)
        return micro_batch


def own_step(
    setting: Setting,
    clock: StepClock,
    ablation: SimpleNamespace,
    form: Form | None = None,
    make_model: Callable[[Setting], PeftModel | PreTrainedModel] = own_model,
    prepared: Callable[[PeftModel | PreTrainedModel], AbstractContextManager] = nullcontext,
    **options: Any,
) -> tuple[Measured, dict[str, float]]:
    """Train by an ablation, and return the cost of a step and the shares of its phases.

    Args:
        setting: model, batch, device and dtype.
        clock: of the steps.
        ablation: of `specs.py`.
        form: how the teacher is given; None: no token is distilled.
        make_model: makes what is trained.
        prepared: a context of the model in which it is trained.
        **options: further arguments of the Trainer.
    """
    with unchanged_modules(setting):
        model = make_model(setting)
        teacher = None
        if form is not None:
            cached = form != "online"
            teacher = FileTeacher(cached_states(model, setting, form), setting) if cached else OnlineTeacher()
        with prepared(model):
            return _own_step(model, setting, clock, ablation, teacher, options)


def _own_step(
    model: PeftModel | PreTrainedModel,
    setting: Setting,
    clock: StepClock,
    ablation: SimpleNamespace,
    teacher: TeacherSource | None,
    options: dict[str, Any],
) -> tuple[Measured, dict[str, float]]:
    trainer = MeasuredTrainer(
        model=model,
        args=TrainingArguments(**trainer_settings(setting, clock) | options),
        train_dataset=dataset_of(setting.shape, clock.steps),
        callbacks=[Ticks(clock)],
        ablation=ablation,
        teacher=teacher,
    )
    phases: Counter[str] = Counter()
    clock.at_start = partial(_count, trainer.clock, phases, -1)
    clock.at_end = partial(_count, trainer.clock, phases, 1)
    measured = train_and_measure(trainer, clock)
    total = phases.pop("total")
    return measured, {name: seconds / total for name, seconds in phases.items()}


def _count(clock: PhaseClock, phases: Counter, sign: int) -> None:
    """Add or subtract the seconds of the phases so far."""
    for name, seconds in clock.seconds().items():
        phases[name] += sign * seconds
