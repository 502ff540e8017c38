"""The training of teacher and students: `transformers.Trainer` with a token-level objective.

Adds our batches, records and costs to the objective of `token_objective.py`.

Shapes: N response tokens of a micro-batch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import gather_object, set_seed
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from tokenuq_ml.costs.record import CostRecord
from tokenuq_ml.data.batching import Batch, LengthBucketSampler, TokenizedExample, collate, pack
from tokenuq_ml.kernels.training_loss import TrainingLoss
from tokenuq_ml.kernels.true_distributions import TrueDistributions
from tokenuq_ml.models.dynamic_rope import shared_length
from tokenuq_ml.models.forward import packing_is_exact
from tokenuq_ml.models.output_layer import causal_lm
from tokenuq_ml.models.packed_attention import LONG_ROW, can_be_separated, separated_documents
from tokenuq_ml.models.router_loss import router_coefficient
from tokenuq_ml.models.sharding import leave_to_fsdp
from tokenuq_ml.progress import Reporter
from tokenuq_ml.tracking.callback import TrackingCallback
from tokenuq_ml.training.checkpoints import CheckpointCallback
from tokenuq_ml.training.cost_counter import CostCounter
from tokenuq_ml.training.rank_growth import RankGrowthCallback
from tokenuq_ml.training.recorder import StepRecorder
from tokenuq_ml.training.resumed import tracking_callbacks, train_resumed
from tokenuq_ml.training.setup import TrainingSetup, micro_batch_size, training_arguments
from tokenuq_ml.training.token_columns import static_selection
from tokenuq_ml.training.token_objective import TokenObjective
from tokenuq_ml.training.training_options import check_layers, check_optimizer, prepared_layers

Collate = Callable[[list[TokenizedExample]], Batch]


class TokenTrainer(TokenObjective, Trainer):
    """Trainer with our objective, batches and records.

    Args:
        model: its active adapter is trained; without one, the model.
        setup: data, budget, objective and seed.
        recorder: gets the rows of `training_log` and `selections`.
        join: makes a micro-batch of examples.
        **kwargs: further arguments of `Trainer`.
    """

    def __init__(
        self,
        model: PeftModel | PreTrainedModel,
        setup: TrainingSetup,
        recorder: StepRecorder,
        join: Collate = collate,
        **kwargs,
    ):
        super().__init__(
            model=model,
            train_dataset=setup.examples,
            data_collator=lambda rows: {"batch": join(rows)},
            ablation=setup.ablation,
            teacher=setup.teacher,
            **kwargs,
        )
        self.setup, self.recorder, self.cost_counter = setup, recorder, CostCounter()
        self._static_masks: dict[str, Tensor] | None = None
        if setup.columns is not None:
            self.teacher_mean = setup.columns.teacher_mean
            if setup.ablation.select.is_decided_before_training:
                self._static_masks = static_selection(setup.ablation, setup.columns, setup.examples)
        if self.accelerator.num_processes > 1:
            recorder.gather = gather_object

    # What TokenObjective lets a subclass override.

    records_losses = True
    logs_metrics = False
    applied_keys = frozenset({"lora", "rank_growth", "train", "budget"})

    averages_router_loss = True

    @property
    def router_loss_weight(self) -> float:
        """Weight of a mixture's router loss: the model's own coefficient, as with TRL."""
        return router_coefficient(causal_lm(self.model))

    def token_batch(self, inputs: dict[str, Batch]) -> Batch:
        """Return the micro-batch that the data collator made, on the training device."""
        batch = inputs["batch"].to(self.args.device)
        return batch.with_mask() if self.router_loss_weight else batch

    def example_ids(self, batch: Batch) -> tuple[str, ...]:
        """Return the ids of the micro-batch's examples."""
        return tuple(example.example_id for example in batch.examples)

    def token_columns(self, batch: Batch) -> dict[str, Tensor]:
        """Return the columns of the token tables that the ablation reads."""
        return self.setup.columns.of(batch.examples) if self.setup.columns else {}

    def true_distributions(self, batch: Batch) -> TrueDistributions | None:
        """Return the distributions that generated the tokens of a synthetic language."""
        return self.setup.truth.of(batch.examples) if self.setup.truth else None

    def data_weights(self, batch: Batch) -> Tensor | None:
        """Return the weights that the examples give their tokens."""
        return batch.weight_N

    def static_mask(self, batch: Batch) -> Tensor | None:
        """Return `mask_N` if the selection was decided before training."""
        if self._static_masks is None:
            return None
        parts = [self._static_masks[example.example_id] for example in batch.examples]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)

    def record(self, batch: Batch, out: TrainingLoss, tokens_of_step: int) -> None:
        """Record a micro-batch's rows, and count its costs."""
        step = self.state.global_step + 1
        self.recorder.add(batch, out, tokens_of_step, step, self.setup.steps_per_epoch)
        self.cost_counter.add(batch, out, step)

    # What Trainer calls.

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of this rank's micro-batches."""
        setup, ranks = self.setup, self.accelerator.num_processes
        sampler = LengthBucketSampler(
            [len(example.input_ids) for example in setup.examples],
            setup.train.batch_size,
            micro_batch_size(setup.train, ranks),
            setup.seed,
            self.accelerator.process_index,
            ranks,
        )
        # Not through accelerate, which gives each rank complete batches in turn: here each has its part of every batch.
        return EpochLoader(setup.examples, batch_sampler=sampler, collate_fn=self.data_collator)

    def compute_loss_context_manager(self):
        """Return the autocast context of our precision."""
        return self.setup.numerics.autocast()

    def floating_point_ops(self, inputs) -> int:
        """Return 0: Trainer's estimate, from `input_ids` alone, would not fit this objective."""
        return 0

    def costs(self) -> CostRecord | None:
        """Return what this process's steps cost, over all ranks; None if it made none. Every rank calls this."""
        return self.cost_counter.over_ranks(self.recorder.gather).record(
            self.ablation,
            self.teacher.form,
            _lora_rank(self.model),
            self.selection_passes * self.accelerator.num_processes,
            self.clock.seconds(),
            self.setup.train.gradient_checkpointing,
        )


class EpochLoader(DataLoader):
    """A loader whose batch sampler orders each epoch by its number."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Trainer calls this."""
        self.batch_sampler.set_epoch(epoch)


def train(
    model: PeftModel | PreTrainedModel,
    setup: TrainingSetup,
    work_dir: str | Path,
    reporter: Reporter,
    name: str,
    tracking: TrackingCallback | None = None,
) -> StepRecorder:
    """Train in place, from the last complete checkpoint in `work_dir` if there is one.

    Args:
        model: its active adapter is trained, or without one the model; set to evaluation mode at the end.
        setup: data, budget, objective and seed.
        work_dir: where checkpoints and snapshots are written.
        reporter: gets progress messages.
        name: the start of each message.
        tracking: reports to experiment trackers.

    Returns:
        The recorder, with the rows of `training_log` and `selections` and the costs.

    Raises:
        KeyboardInterrupt: SIGINT was received. A checkpoint holds the state, and the next call resumes from it.
    """
    check_optimizer(setup.train, setup.ablation, setup.numerics.device)
    check_layers(model, setup.train)
    recorder = StepRecorder(setup.ablation)
    recorder.lora_rank = _lora_rank(model)
    setup = _one_text_a_pass(model, setup, reporter, name)
    join = _collate_function(model, setup, recorder, reporter, name)
    checkpoints = CheckpointCallback(recorder, setup, Path(work_dir), reporter, name)
    callbacks: list[TrainerCallback] = [checkpoints]
    if setup.ablation.rank_growth is not None:
        callbacks.append(RankGrowthCallback(model, setup.ablation.rank_growth, recorder))
    callbacks += tracking_callbacks(tracking, recorder)
    trainer = TokenTrainer(model, setup, recorder, join, args=training_arguments(setup, work_dir), callbacks=callbacks)
    # It would print every log a second time.
    trainer.remove_callback(PrinterCallback)
    leave_to_fsdp(model)
    if trainer.accelerator.num_processes > 1:
        # Trainer seeds every rank alike, so that their dropout masks would be the same.
        set_seed(setup.seed, device_specific=True)
    with prepared_layers(model, setup.train), _packed_attention(model, setup, recorder), tracking or nullcontext():
        train_resumed(trainer, checkpoints, recorder, setup.steps, reporter, name)
    recorder.costs = trainer.costs()
    recorder.aux_losses = [row["aux_loss"] for row in trainer.state.log_history if "aux_loss" in row]
    model.eval()
    return recorder


def _one_text_a_pass(
    model: PeftModel | PreTrainedModel, setup: TrainingSetup, reporter: Reporter, name: str
) -> TrainingSetup:
    """Return the setup with micro-batches of one example where a text's loss would depend on the others' lengths."""
    limit, longest = shared_length(causal_lm(model)), max((len(one.input_ids) for one in setup.examples), default=0)
    if limit is None or longest <= limit:
        return setup
    reporter.info(
        f"{name}: one text per forward pass, because this model follows the longest text of a pass beyond "
        f"{limit:,} tokens"
    )
    return replace(setup, train=setup.train.model_copy(update={"micro_batch_size": 1}))


def _collate_function(
    model: PeftModel | PreTrainedModel, setup: TrainingSetup, recorder: StepRecorder, reporter: Reporter, name: str
) -> Collate:
    """Return the function that makes micro-batches, packed if the setup asks for it and the model allows it."""
    if setup.train.batching != "pack":
        return collate
    if not packing_is_exact(model, setup.numerics):
        reporter.info(
            f"{name}: this model's attention does not keep packed sequences apart, so they are padded instead"
        )
        return collate
    recorder.batching = "pack"
    return pack


def _packed_attention(
    model: PeftModel | PreTrainedModel, setup: TrainingSetup, recorder: StepRecorder
) -> AbstractContextManager[None]:
    """Return the context in which rows that are too long for a mask are attended to by documents."""
    lengths = sorted((len(one.input_ids) for one in setup.examples), reverse=True)
    longest_row = sum(lengths[: setup.train.micro_batch_size or setup.train.batch_size])
    is_long = recorder.batching == "pack" and longest_row > LONG_ROW
    if is_long and not setup.train.torch_compile and can_be_separated(model, setup.numerics):
        return separated_documents(model, LONG_ROW)
    return nullcontext()


def _lora_rank(model: PeftModel | PreTrainedModel) -> int | None:
    """Return the rank of the active adapter as allocated; None if the model has no adapter."""
    return model.peft_config[model.active_adapter].r if isinstance(model, PeftModel) else None
