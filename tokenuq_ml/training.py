"""The student's (and the teacher's) training: `transformers.Trainer` with a token-level objective.

Puts our batches and records around the objective of `token_objective.py`. Records and
checkpoints are in `training_records.py`; formulas in `selection.py`, `objectives.py` and `kernels.py`.

Shapes: N response tokens of a micro-batch.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from tokenuq_ml.batching import Batch, LengthBucketSampler, TokenizedExample, collate, pack
from tokenuq_ml.kernels import TrainingLoss
from tokenuq_ml.models import Numerics, packing_is_exact
from tokenuq_ml.objectives import OBJECTIVES
from tokenuq_ml.selection import extreme_quantile
from tokenuq_ml.specs import AblationSpec, TrainSpec
from tokenuq_ml.stages import Reporter
from tokenuq_ml.teacher import TeacherSource
from tokenuq_ml.token_objective import TokenObjective
from tokenuq_ml.training_records import CheckpointCallback, StepRecorder, latest_checkpoint


@dataclass
class TrainingSetup:
    """All that decides a training run, beside the model: the data, the budget, the objective, the seed."""

    examples: list[TokenizedExample]
    train: TrainSpec
    ablation: AblationSpec
    seed: int
    numerics: Numerics
    teacher: TeacherSource | None = None
    static_selection: dict[str, Tensor] | None = None
    """Of `scope: dataset`: example_id -> mask over its response tokens."""
    snapshot_fractions: tuple[float, ...] = ()
    """Shares of training, in (0, 1), at which the adapter is kept."""

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.train.batch_size)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.train.epochs


def static_selection(token_losses: pl.DataFrame, ablation: AblationSpec, examples: list[TokenizedExample]) -> dict:
    """The quantile over all train tokens by the teacher's table: example_id -> mask of its tokens."""
    wanted = {example.example_id for example in examples}
    tokens = token_losses.filter(pl.col("example_id").is_in(wanted)).sort("example_id", "position")
    if ablation.select.by == "all":
        mask = torch.ones(len(tokens), dtype=torch.bool)
    else:
        score_N = torch.from_numpy(tokens[ablation.select.by].to_numpy().copy())
        mask = extreme_quantile(score_N, ablation.select.quantile, ablation.select.keep)
    selected = tokens.select("example_id").with_columns(selected=pl.Series(mask.numpy()))
    return {
        key: torch.from_numpy(group["selected"].to_numpy().copy())
        for (key,), group in selected.group_by("example_id", maintain_order=True)
    }


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

    def static_mask(self, batch: Batch) -> Tensor | None:
        if self.setup.static_selection is None:
            return None
        parts = [self.setup.static_selection[example.example_id] for example in batch.examples]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)

    def record(self, batch: Batch, selected_N: Tensor, out: TrainingLoss, tokens_of_step: int) -> None:
        self.recorder.add(
            batch, selected_N, out, tokens_of_step, self.state.global_step + 1, self.setup.steps_per_epoch
        )

    def floating_point_ops(self, inputs) -> int:
        """Not Trainer's to estimate: it counts by input_ids alone."""
        return 0


class _EpochLoader(DataLoader):
    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def micro_batch_size(train: TrainSpec, ranks: int = 1) -> int:
    """Examples of a forward pass: as asked for, else the rank's whole share of the optimiser batch."""
    return train.micro_batch_size or max(1, train.batch_size // ranks)


def training_arguments(setup: TrainingSetup, output_dir: str | Path) -> TrainingArguments:
    """The budget in Trainer's terms. Precision is ours (`Numerics.autocast`), so Trainer's own stays off."""
    train = setup.train
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    micro = micro_batch_size(train, ranks)
    return TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, train.batch_size // (micro * ranks)),
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_schedule,
        warmup_steps=round(train.warmup_ratio * setup.steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch",
        seed=setup.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=train.save_steps,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=setup.numerics.device == "cpu",
        dataloader_pin_memory=setup.numerics.device == "cuda",
        average_tokens_across_devices=False,
    )


def train(model: PeftModel, setup: TrainingSetup, work_dir: str | Path, reporter: Reporter, name: str) -> StepRecorder:
    """Train the active adapter in place; goes on from the last whole checkpoint in `work_dir`.

    Returns the recorder with the rows of `training_log` and `selections`.

    Raises:
        KeyboardInterrupt: SIGINT came; the state is in a checkpoint, and the next call goes on from it.
    """
    assert all(objective.kind in OBJECTIVES for objective in (setup.ablation.selected, setup.ablation.rest))
    recorder = StepRecorder(setup.ablation)
    callback = CheckpointCallback(recorder, setup, Path(work_dir), reporter, name)
    join = collate
    if setup.train.batching == "pack" and packing_is_exact(model, setup.numerics):
        join, recorder.batching = pack, "pack"
    elif setup.train.batching == "pack":
        reporter.info(f"{name}: this model's attention does not keep packed sequences apart; they are padded instead")
    trainer = TokenTrainer(model, setup, recorder, join, args=training_arguments(setup, work_dir), callbacks=[callback])
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
    recorder.selection_seconds = trainer.selection_seconds
    model.eval()
    return recorder
