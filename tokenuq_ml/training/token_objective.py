"""The token-level objective as a mixin over any `transformers.Trainer`.

Replaces only how a training loss is computed. Loop, optimiser, schedule, data and evaluation stay the Trainer's.

How a quantile gets from the configuration to the loss, top to bottom:

0. `config/ablations.yaml` is read into `AblationSpec.select.quantile`; the ablation is an argument of `TokenObjective`.
1. `get_batch_samples` wraps each micro-batch of the optimiser step in a `MicroBatch`, with a `SelectionRule`.
2. `compute_loss` runs the model. If the optimiser batch has several micro-batches or ranks, `_decide_together` comes
   first: it selects over all of them (`decisions.decide`) and replaces each rule by its part of the decision.
3. `_share_of_loss` runs inside the model's forward pass and calls `training_loss` with the rule.
4. `training_loss` asks the rule. This is the one call back up: a `SelectionRule` calls `decisions.decide` now, with the
   losses that the kernel computed; a part of a decision returns itself.
5. `decisions.decide` calls `selection.select`, which takes the quantile, and `objectives.token_weights`.
6. `training_loss` computes the gradient of the tokens that have weight, and returns weights and mask for `record`.

Shapes: B sequences, T positions, N response tokens of a micro-batch, D hidden size.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.observers import together
from tokenuq_ml.kernels.scores import token_losses
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.models.forward import accept_token_function
from tokenuq_ml.seeding import generator_states, restored_generators
from tokenuq_ml.training.decisions import MicroBatch, SelectionRule, decide_together
from tokenuq_ml.training.document_borders import check_ids
from tokenuq_ml.training.finite_steps import FiniteSteps
from tokenuq_ml.training.mixin_arguments import as_ablation, as_teacher, check_ablation, check_trainable, prepare_model
from tokenuq_ml.training.objective_hooks import ObjectiveHooks
from tokenuq_ml.training.objectives import token_gain
from tokenuq_ml.training.phase_clock import PhaseClock
from tokenuq_ml.training.router_term import RouterLoss
from tokenuq_ml.training.step_batches import StepBatches
from tokenuq_ml.training.student_columns import StudentColumns, student_columns
from tokenuq_ml.training.teacher import TeacherSource
from tokenuq_ml.training.token_batch import TokenBatch
from tokenuq_ml.training.tokens import Tokens
from tokenuq_ml.training.trainer_options import check_options, switch_off_liger_loss, warn_of_unused_loss
from tokenuq_ml.training.training_metrics import LoggedMetrics
from tokenuq_ml.transfers import HostCopy, to_device

if TYPE_CHECKING:
    from tokenuq_ml.config import AblationSpec


class TokenObjective(ObjectiveHooks, LoggedMetrics, RouterLoss, FiniteSteps):
    """Mixin that gives a Trainer the token-level objective: `class MyTrainer(TokenObjective, SFTTrainer)`.

    The objective of an optimiser batch with N response tokens over all micro-batches and ranks is
    `(1/N) * sum_n selected_n ? CE_n : weight * divergence(teacher_n, student_n)` (arXiv 2503.16511). Weights that the
    data give tokens (`data_weights`) multiply their terms, and change neither selection nor N. Selection and division
    are over the complete optimiser batch, so accumulation, padding and the number of ranks change nothing.
    The logged loss is that number; evaluation losses stay the Trainer's own.

    Args:
        *args: arguments of the Trainer.
        ablation: which tokens are trained and how; a dict is an entry of `config/ablations.yaml`, without its name; a
            string is the name of a shipped ablation.
        teacher: gives the distributions that tokens are distilled to, whichever teacher the ablation names; a model is
            wrapped in `SeparateTeacher`; default: the model without its adapter.
        **kwargs: arguments of the Trainer.

    Raises:
        InputError: the ablation distils, the model has no adapter, and `teacher` is None; `teacher` is no
            `TeacherSource`; or the ablation or the Trainer has an option that would be ignored (`trainer_options.py`).

    Examples:
        Train the quarter of tokens with the highest loss, and distil the rest to the model without its adapter:

        >>> import tempfile
        >>> from peft import LoraConfig, get_peft_model
        >>> from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
        >>> from tokenuq_ml import TokenObjective
        >>> class MyTrainer(TokenObjective, Trainer):
        ...     pass
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        ... )
        >>> model = get_peft_model(LlamaForCausalLM(config), LoraConfig(target_modules="all-linear"))
        >>> trainer = MyTrainer(
        ...     model=model,
        ...     args=TrainingArguments(tempfile.mkdtemp(), max_steps=2, report_to=[], disable_tqdm=True, use_cpu=True),
        ...     train_dataset=[{"input_ids": [3, 4, 5, 6, 7], "labels": [-100, -100, 5, 6, 7]}] * 16,
        ...     ablation={"select": {"by": "loss", "quantile": 0.25}, "rest": {"distill": {}}},
        ... )
        >>> trainer.train().global_step  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        2
    """

    # The loss is divided by the optimiser batch's tokens already.
    loss_is_scaled_for_ga = True
    _forwards: ExitStack | None = None
    """Holds the replaced forward pass of the model while it is trained."""

    def __init__(
        self,
        *args,
        ablation: AblationSpec | dict | str,
        teacher: TeacherSource | torch.nn.Module | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.ablation = as_ablation(ablation)
        check_options(self)
        warn_of_unused_loss(self, TokenObjective)
        switch_off_liger_loss(self)
        check_ablation(self)
        self.teacher = as_teacher(teacher, self.ablation, self.model)
        prepare_model(self, self.model)
        self.clock = PhaseClock(self.args.device)
        """Seconds by phase: forward, head, backward, teacher, selection, other."""
        self.selection_passes = 0
        """Forward passes made only to select: none with one micro-batch on one rank."""
        self._step_batches = StepBatches()

    @property
    def selection_seconds(self) -> float:
        """Seconds spent only on selection: 0 with one micro-batch on one rank."""
        return self.clock.seconds().get("selection", 0.0)

    # What Trainer calls.

    def train(self, *args, **kwargs):
        """Train as the Trainer does, with this objective."""
        with ExitStack() as self._forwards:
            self._forwards.callback(self._end_training)
            if self.model_init is None:
                check_trainable(self.model)
                self._forwards.enter_context(accept_token_function(self.model))
            return super().train(*args, **kwargs)

    def _end_training(self) -> None:
        self.clock.stop()
        self._forwards, self._step_batches = None, StepBatches()

    def call_model_init(self, trial=None):
        """Return a new model, on whose forward pass the objective is computed if a training starts."""
        model = super().call_model_init(trial)
        if self._forwards is not None:
            prepare_model(self, model)
            check_trainable(model)
            self._forwards.enter_context(accept_token_function(model))
        return model

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Return the micro-batches of an optimiser step, and its number of response tokens over all ranks."""
        self.clock.start()
        # A hyper-parameter search sets options, and `model_init` the model, after the Trainer was made.
        check_options(self)
        check_ablation(self)
        samples = [inputs for _, inputs in zip(range(num_batches), epoch_iterator, strict=False)]
        samples = [self._prepare_inputs(inputs) for inputs in samples]
        prefetch = getattr(self.teacher, "prefetch", None) if self.ablation.distillation else None
        self._step_batches = StepBatches(samples, lambda inputs: self._undecided(self.token_batch(inputs)), prefetch)
        return samples, self._step_batches.count(self.accelerator.gather, device)

    def _prepare_input(self, data):
        # PyTorch copies from `cpu` to `cpu:0`, the device of several processes; a Trainer's copy to a GPU waits for it.
        if isinstance(data, Tensor) and data.device.type == "cpu" and self.args.device.type in ("cpu", "cuda"):
            return data if self.args.device.type == "cpu" else to_device(data, self.args.device)
        return super()._prepare_input(data)

    def training_step(self, *args, **kwargs):
        """Run a micro-batch; all but its forward pass, which has phases of its own, counts as the backward pass."""
        with self.clock.phase("backward"):
            return super().training_step(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the next micro-batch's share of the objective; in evaluation, the Trainer's own loss."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        micro_batch = self._step_batches.of(inputs)
        # Not where batches are fetched: on resumption, Trainer restores the generators in between.
        if not self._step_batches.is_decided and self._must_decide_together:
            with self.clock.phase("selection"):
                self._decide_together(model)
        outputs = self._outputs(model, micro_batch.batch) if return_outputs else None
        tokens_of_step = self._step_batches.tokens if num_items_in_batch is None else num_items_in_batch
        share = partial(self._share_of_loss, micro_batch, tokens_of_step)
        micro_batch.generators = generator_states()
        self.training_metrics.start_micro_batch()
        with self.clock.phase("forward"):
            loss = model(**micro_batch.batch.model_inputs, token_function=share, **self.router_inputs())
        self.require_finite_loss(micro_batch)
        # DDP averages gradients over ranks; the division is by the tokens of all of them.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _outputs(self, model, batch: TokenBatch):
        """Return the model's own outputs, by a pass before that of the loss, with the same dropout masks."""
        with restored_generators():
            return model(**batch.model_inputs)

    def _undecided(self, batch: TokenBatch) -> MicroBatch:
        student = student_columns(self, batch, self.ablation.student_columns_read)
        rule = SelectionRule(self.ablation, partial(self._tokens, batch, student), self.static_mask(batch))
        return MicroBatch(batch, rule, student=student)

    def _tokens(self, batch: TokenBatch, student: StudentColumns | None, loss_N: Tensor) -> Tokens:
        """Return what selectors and users' objectives read of the micro-batch, on the device of `loss_N`."""
        device, weight_N, columns = loss_N.device, self.data_weights(batch), self.token_columns(batch)
        example_N, ids = batch.example_N, tuple(self.example_ids(batch))
        self.require_finite_values(batch, columns, weight_N)
        check_ids(example_N, ids)
        columns = {**columns, **(student.columns if student else {})}
        return Tokens(
            loss_N,
            to_device(example_N, device),
            ids,
            {name: to_device(column_N, device) for name, column_N in columns.items()},
            self.teacher_mean,
            self.state.global_step + 1,
            self.state.max_steps,
            self.ablation.seed,
            None if weight_N is None else to_device(weight_N, device),
        )

    @property
    def _must_decide_together(self) -> bool:
        """Whether a token's treatment depends on tokens outside its micro-batch."""
        is_alone = len(self._step_batches) == 1 and self.accelerator.num_processes == 1
        mask_N = None if is_alone else self.static_mask(self._step_batches.micro_batches[0].batch)
        return not is_alone and self.ablation.decides_together(mask_N is not None)

    @torch.no_grad()
    def _decide_together(self, model) -> None:
        batches, needs_losses = [one.batch for one in self._step_batches], self.ablation.needs_student_losses
        losses = self._loss_pass(model) if needs_losses else [torch.zeros(batch.tokens) for batch in batches]
        # On the CPU, where ranks gather them: the one moment of such a step, before its training passes, that waits.
        pairs = zip(self._step_batches, HostCopy(*losses).wait(), strict=True)
        tokens = [self._tokens(one.batch, one.student, loss_N) for one, loss_N in pairs]
        self.require_finite_losses(self._step_batches, [part.loss_N for part in tokens])
        masks = [self.static_mask(batch) for batch in batches]
        decide_together(self.ablation, self._step_batches.micro_batches, tokens, masks, self.accelerator)
        for micro_batch, loss_N in zip(self._step_batches, losses, strict=True):
            micro_batch.loss_N = loss_N if needs_losses else None
        self._step_batches.is_decided = True

    def _loss_pass(self, model) -> list[Tensor]:
        """Return `loss_N` of each micro-batch by a forward pass that leaves the random generators as they were."""
        losses = []
        with restored_generators():
            for micro_batch in self._step_batches:
                micro_batch.generators = generator_states()
                losses_of = partial(self._micro_batch_losses, micro_batch)
                losses.append(model(**micro_batch.batch.model_inputs, token_function=losses_of))
        self.selection_passes += len(losses)
        return losses

    def _micro_batch_losses(self, micro_batch: MicroBatch, hidden_BTD: Tensor, head: Head) -> Tensor:
        batch, hidden_ND = micro_batch.batch, micro_batch.batch.predicting(hidden_BTD)
        micro_batch.statistics = self.new_statistics(batch.label_N, hidden_BTD)
        statistics = micro_batch.statistics and micro_batch.statistics.observer(batch.label_N)
        if micro_batch.student is not None and micro_batch.student.read_divergence:
            micro_batch.teacher = self._teacher_term(batch)
        observe = together(statistics, micro_batch.observer(hidden_ND, head, micro_batch.teacher))
        return token_losses(hidden_ND, head, batch.label_N, observe)

    def _share_of_loss(self, micro_batch: MicroBatch, tokens_of_step: Tensor, hidden_BTD: Tensor, head: Head) -> Tensor:
        """Return the micro-batch's share of the optimiser batch's loss; runs inside the wrapped model's forward."""
        batch, label_N, known = micro_batch.batch, micro_batch.batch.label_N, micro_batch.statistics
        teacher, hidden_ND = micro_batch.teacher or self._teacher_term(batch), batch.predicting(hidden_BTD)
        statistics = known or self.new_statistics(label_N, hidden_BTD)
        with self.clock.phase("head"):
            out = training_loss(
                hidden_ND,
                head,
                label_N,
                micro_batch.rule,
                teacher=teacher,
                gain=token_gain(self.ablation),
                every_loss=self.records_losses and micro_batch.loss_N is None,
                statistics=None if known else statistics,
                observe=micro_batch.observer(hidden_ND, head, teacher),
            )
        if micro_batch.loss_N is not None:
            out = out._replace(loss_N=micro_batch.loss_N)
        if self.may_be_recorded(micro_batch, out):
            self.add_metrics(batch, out, statistics)
            self.record(batch, out, self._step_batches.tokens_on_host)
        return out.total / tokens_of_step

    def _teacher_term(self, batch: TokenBatch) -> TeacherTerm | None:
        if (distillation := self.ablation.distillation) is None:
            return None
        with self.clock.phase("teacher"):
            states = self.teacher.states(self.model, batch)
        return TeacherTerm.of(distillation, states, self.teacher.head)
