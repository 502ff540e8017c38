"""The training of teacher and students: `transformers.Trainer` with a token-level objective.

Adds batches, records and costs to the objective of `token_objective.py`.

Shapes: N response tokens of a micro-batch.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from tokenuq_ml.costs.record import CostRecord, Seconds
from tokenuq_ml.data.batching import Batch, LengthBucketSampler, TokenizedExample, collate, pack
from tokenuq_ml.kernels.training_loss import TrainingLoss
from tokenuq_ml.models.forward import packing_is_exact
from tokenuq_ml.progress import Reporter
from tokenuq_ml.training.checkpoints import CheckpointCallback, latest_checkpoint
from tokenuq_ml.training.rank_growth import RankGrowthCallback
from tokenuq_ml.training.recorder import StepRecorder
from tokenuq_ml.training.setup import TrainingSetup, micro_batch_size, training_arguments
from tokenuq_ml.training.token_columns import static_selection
from tokenuq_ml.training.token_objective import TokenObjective


class TokenTrainer(TokenObjective, Trainer):
    """Trainer with our objective, our batches and our records."""

    def __init__(
        self,
        model: PeftModel,
        setup: TrainingSetup,
        recorder: StepRecorder,
        join: Callable[[list[TokenizedExample]], Batch] = collate,
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
        self.setup, self.recorder = setup, recorder
        self._static = None
        self._counts, self._steps, self._micro_batches_seen = Counter(), set(), 0
        if setup.columns is not None:
            self.teacher_mean = setup.columns.teacher_mean
            if setup.ablation.select.is_decided_before_training:
                self._static = static_selection(setup.ablation, setup.columns, setup.examples)
        if self.accelerator.num_processes > 1:
            recorder.gather = gather_object

    def get_train_dataloader(self) -> DataLoader:
        setup, ranks = self.setup, self.accelerator.num_processes
        sampler = LengthBucketSampler(
            [len(example.input_ids) for example in setup.examples],
            setup.train.batch_size,
            micro_batch_size(setup.train, ranks),
            setup.seed,
            self.accelerator.process_index,
            ranks,
        )
        # Not through accelerate, which would hand whole batches to ranks in turn: a rank has its part of each.
        return _EpochLoader(setup.examples, batch_sampler=sampler, collate_fn=self.data_collator)

    def token_batch(self, inputs) -> Batch:
        return inputs["batch"].to(self.args.device)

    def compute_loss_context_manager(self):
        return self.setup.numerics.autocast()

    records_losses = True

    def example_ids(self, batch: Batch) -> tuple[str, ...]:
        return tuple(example.example_id for example in batch.examples)

    def token_columns(self, batch: Batch) -> dict[str, Tensor]:
        return self.setup.columns.of(batch.examples) if self.setup.columns else {}

    def static_mask(self, batch: Batch) -> Tensor | None:
        if self._static is None:
            return None
        parts = [self._static[example.example_id] for example in batch.examples]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)

    def record(self, batch: Batch, out: TrainingLoss, tokens_of_step: int) -> None:
        step = self.state.global_step + 1
        self.recorder.add(batch, out, tokens_of_step, step, self.setup.steps_per_epoch)
        counts, lengths = self._counts, [len(example.input_ids) for example in batch.examples]
        self._steps.add(step)
        self._micro_batches_seen += 1
        counts["sequences"] += len(lengths)
        counts["tokens"] += sum(lengths)
        counts["padded_tokens"] += batch.input_ids_BT.numel()
        counts["response_tokens"] += len(out.loss_N)
        counts["mle_tokens"] += int((out.weights.mle_N > 0).sum())
        counts["distilled_tokens"] += int((out.weights.distill_N > 0).sum())
        # A packed row attends within its sequences alone; a padded one over its whole length.
        spans = lengths if batch.position_ids_BT is not None else [batch.input_ids_BT.shape[1]] * len(lengths)
        counts["attended"] += sum(span**2 for span in spans) / 2

    def costs(self) -> CostRecord | None:
        """What this process's steps cost on this rank; None where it made none."""
        if not self._steps:
            return None
        seconds = {name: 0.0 for name in Seconds.model_fields} | self.clock.seconds()
        return CostRecord(
            **self._counts,
            steps=len(self._steps),
            selection=self.ablation.selection_kind,
            selection_needs_loss=self.ablation.needs_student_losses,
            selection_passes=self.selection_passes / self._micro_batches_seen,
            teacher=self.teacher.form if self.ablation.distillation else "none",
            lora_rank=self.model.peft_config[self.model.active_adapter].r,
            seconds=Seconds(**seconds),
        )

    def floating_point_ops(self, inputs) -> int:
        """Not Trainer's to estimate: it counts by input_ids alone."""
        return 0


class _EpochLoader(DataLoader):
    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def train(model: PeftModel, setup: TrainingSetup, work_dir: str | Path, reporter: Reporter, name: str) -> StepRecorder:
    """Train the active adapter in place; goes on from the last whole checkpoint in `work_dir`.

    Returns the recorder with the rows of `training_log` and `selections`.

    Raises:
        KeyboardInterrupt: SIGINT came; the state is in a checkpoint, and the next call goes on from it.
    """
    recorder = StepRecorder(setup.ablation)
    recorder.lora_rank = model.peft_config[model.active_adapter].r
    callback = CheckpointCallback(recorder, setup, Path(work_dir), reporter, name)
    join = collate
    if setup.train.batching == "pack" and packing_is_exact(model, setup.numerics):
        join, recorder.batching = pack, "pack"
    elif setup.train.batching == "pack":
        reporter.info(f"{name}: this model's attention does not keep packed sequences apart; they are padded instead")
    callbacks = [callback]
    if setup.ablation.rank_growth is not None:
        callbacks.append(RankGrowthCallback(model, setup.ablation.rank_growth, recorder))
    trainer = TokenTrainer(model, setup, recorder, join, args=training_arguments(setup, work_dir), callbacks=callbacks)
    # Trainer's own console callbacks would print every log a second time.
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    checkpoint = latest_checkpoint(work_dir)
    if checkpoint is not None:
        recorder.load(checkpoint)
        reporter.info(f"{name}: going on from step {recorder.last_step} of {setup.steps}")
    with callback.graceful_stop():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if callback.stop_requested and trainer.state.global_step < setup.steps:
        raise KeyboardInterrupt(
            f"{name}: stopped at step {trainer.state.global_step} of {setup.steps}; a checkpoint holds the state"
        )
    recorder.costs = trainer.costs()
    model.eval()
    return recorder
