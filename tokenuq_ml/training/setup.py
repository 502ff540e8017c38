"""What determines a training besides the model, and the same as arguments of `transformers.Trainer`."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

from transformers import TrainingArguments

from tokenuq_ml.config import AblationSpec, TrainSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.token_truth import TokenTruth
from tokenuq_ml.training.teacher import TeacherSource
from tokenuq_ml.training.token_columns import TokenColumns

CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in fields(TrainingArguments)}
)
"""The Trainer's argument for layers that are recomputed; transformers before 5.23 have the second one alone."""


@dataclass
class TrainingSetup:
    """Data, budget, objective and seed of a training."""

    examples: list[TokenizedExample]
    train: TrainSpec
    ablation: AblationSpec
    seed: int
    numerics: Numerics
    teacher: TeacherSource | None = None
    """Default: the model without its adapter."""
    columns: TokenColumns | None = None
    """What the ablation reads of the token tables."""
    truth: TokenTruth | None = None
    """The distributions that generated the tokens, if the ablation reads them at each step."""
    snapshot_fractions: tuple[float, ...] = ()
    """Shares of training, in (0, 1), after which a snapshot of the adapter is written."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the last batch may be short."""
        return -(-len(self.examples) // self.train.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps of the training, by the ablation's budget."""
        return self.ablation.steps(self.steps_per_epoch * self.train.epochs)


def micro_batch_size(train: TrainSpec, ranks: int = 1) -> int:
    """Return the examples of a forward pass: a rank's share of the optimiser batch, in parts as configured.

    The parts of a rank's share have the configured size, or the next smaller one that divides the share.

    Raises:
        InputError: the optimiser batch cannot be shared equally.
    """
    share, rest = divmod(train.batch_size, ranks)
    if rest:
        divisors = ", ".join(str(count) for count in range(1, train.batch_size + 1) if train.batch_size % count == 0)
        raise InputError(
            f"train.batch_size {train.batch_size} cannot be shared by {ranks} processes; set `processes` of the study "
            f"(or TOKENUQ_PROCESSES) to one of {divisors}, or batch_size to a multiple of {ranks}"
        )
    return next(size for size in range(min(train.micro_batch_size or share, share), 0, -1) if share % size == 0)


def training_arguments(setup: TrainingSetup, output_dir: str | Path) -> TrainingArguments:
    """Return the Trainer's arguments. Its own mixed precision stays off: `Numerics.autocast` replaces it."""
    train = setup.train
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    micro = micro_batch_size(train, ranks)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=train.epochs,
        # -1: as many as the epochs take.
        max_steps=-1 if setup.ablation.budget == "equal_steps" else setup.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, train.batch_size // (micro * ranks)),
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_schedule,
        warmup_steps=round(train.warmup_ratio * setup.steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=train.optimizer,
        **{CHECKPOINTING: train.gradient_checkpointing},
        torch_compile=train.torch_compile,
        # Its fused loss is switched off by `TokenObjective`.
        use_liger_kernel=train.liger_kernel,
        seed=setup.seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=train.save_steps,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=setup.numerics.device == "cpu",
        dataloader_pin_memory=setup.numerics.device == "cuda",
    )
    return without_trackers(on_one_device(arguments))


def without_trackers(arguments: TrainingArguments) -> TrainingArguments:
    """Return the arguments of a Trainer that adds no tracker by itself: `TrackingCallback` has those that are named.

    transformers adds Kubeflow's to any `report_to`, the empty one too, where `KUBEFLOW_TRAINER_SERVER_URL` is set.
    """
    arguments.report_to = []
    return arguments


def on_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Return the arguments of a process that uses one GPU, also where it sees several.

    Trainer would copy the model to all of them (nn.DataParallel); `processes: auto` of a study uses them.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
