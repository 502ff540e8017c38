"""The student's (and the teacher's) training: `transformers.Trainer` with a token-level objective.

Holds what differs from a stock Trainer: the loss of an optimiser batch, and the selection
over it. Records and checkpoints are in `training_records.py`; formulas in `selection.py`,
`objectives.py` and `kernels.py`.

Shapes: B sequences, T positions, N response tokens of a micro-batch, D hidden size.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from tokenuq_ml import kernels
from tokenuq_ml.batching import Batch, LengthBucketSampler, TokenizedExample, collate
from tokenuq_ml.models import Numerics, forward_to_tokens
from tokenuq_ml.objectives import OBJECTIVES, temperature, token_weights
from tokenuq_ml.selection import extreme_quantile, select
from tokenuq_ml.specs import AblationSpec, TrainSpec
from tokenuq_ml.stages import Reporter
from tokenuq_ml.teacher import TeacherSource
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


class TokenTrainer(Trainer):
    """Trainer whose loss is the token-level objective of the whole optimiser batch.

    The sum over response tokens is divided once by their number in the optimiser batch,
    over all its micro-batches and ranks; a mean of means would weigh short responses up.
    """

    # compute_loss divides by the optimiser batch's tokens already.
    loss_is_scaled_for_ga = True

    def __init__(self, model: PeftModel, setup: TrainingSetup, recorder: StepRecorder, **kwargs):
        super().__init__(
            model=model, train_dataset=setup.examples, data_collator=lambda rows: {"batch": collate(rows)}, **kwargs
        )
        self.setup, self.recorder = setup, recorder
        self._optimiser_batch: list[Batch] = []
        self._selected: dict[int, Tensor] = {}

    def get_train_dataloader(self) -> DataLoader:
        setup = self.setup
        lengths = [len(example.input_ids) for example in setup.examples]
        micro = setup.train.micro_batch_size or setup.train.batch_size
        sampler = LengthBucketSampler(lengths, setup.train.batch_size, micro, setup.seed)
        loader = DataLoader(setup.examples, batch_sampler=sampler, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of an optimiser step, and its number of response tokens over all ranks."""
        samples = []
        for _ in range(num_batches):
            inputs = next(epoch_iterator, None)
            if inputs is None:
                break
            samples.append({"batch": inputs["batch"].to(device)})
        self._optimiser_batch = [inputs["batch"] for inputs in samples]
        self._selected = {}
        tokens = torch.tensor(
            sum(int(batch.response_BT[:, 1:].sum()) for batch in self._optimiser_batch), device=device
        )
        return samples, self.accelerator.gather(tokens).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = inputs["batch"]
        if self._selects_by_student and len(self._optimiser_batch) > 1 and not self._selected:
            self._select_over_optimiser_batch(model)
        function = partial(self._objective, batch, num_items_in_batch)
        with self.setup.numerics.autocast():
            loss = model(input_ids=batch.input_ids_BT, token_function=function)
        # DDP averages gradients over ranks; the division above is by the tokens of all of them.
        return loss * self.accelerator.num_processes

    def floating_point_ops(self, inputs) -> int:
        """Not Trainer's to estimate: it counts by input_ids alone."""
        return 0

    @property
    def _selects_by_student(self) -> bool:
        return self.setup.static_selection is None and self.setup.ablation.select.by != "all"

    @torch.no_grad()
    def _select_over_optimiser_batch(self, model) -> None:
        """The selection over all micro-batches, by a loss pass that leaves the generators as it found them.

        Run at the first micro-batch rather than where batches are fetched, because on
        resumption Trainer restores the generators in between.
        """
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices), self.setup.numerics.autocast():
            losses = [
                model(
                    input_ids=batch.input_ids_BT,
                    token_function=lambda h, head, batch=batch: kernels.token_losses(
                        batch.predicting(h), head, batch.label_N
                    ),
                )
                for batch in self._optimiser_batch
            ]
        mask = select(self.setup.ablation.select, torch.cat(losses))
        for batch, part in zip(self._optimiser_batch, mask.split([len(x) for x in losses]), strict=True):
            self._selected[id(batch)] = part

    def _objective(self, batch: Batch, tokens_of_step: Tensor, hidden_BTD: Tensor, head: kernels.Head) -> Tensor:
        """The micro-batch's share of the optimiser batch's loss; runs inside the wrapped model's forward."""
        setup, ablation = self.setup, self.setup.ablation
        hidden_ND, label_N = batch.predicting(hidden_BTD), batch.label_N
        loss_N, selected_N = self._selection(batch, hidden_ND.detach(), head, label_N)
        weights = token_weights(ablation, selected_N)
        distils = bool(weights.distill_N.any())
        teacher_ND = setup.teacher.states(self.model, batch) if distils else None
        out = kernels.training_loss(
            hidden_ND, head, label_N, weights.mle_N, weights.distill_N, teacher_ND, temperature(ablation)
        )
        self.recorder.add(
            batch,
            loss_N if loss_N is not None else out.mle_N,
            selected_N,
            weights,
            out,
            int(tokens_of_step),
            self.state.global_step + 1,
            setup.steps_per_epoch,
        )
        return out.total / tokens_of_step

    def _selection(self, batch, hidden_ND, head, label_N) -> tuple[Tensor | None, Tensor]:
        """`(loss_N, selected_N)`; no loss where the training pass gives every token's anyway."""
        ablation = self.setup.ablation
        everything = torch.ones(len(label_N), dtype=torch.bool, device=hidden_ND.device)
        if self.setup.static_selection is None and ablation.select.by == "all" and ablation.selected.kind == "mle":
            return None, everything
        loss_N = kernels.token_losses(hidden_ND, head, label_N)
        if self.setup.static_selection is not None:
            parts = [self.setup.static_selection[example.example_id] for example in batch.examples]
            return loss_N, torch.cat(parts).to(hidden_ND.device)
        if id(batch) in self._selected:
            return loss_N, self._selected[id(batch)]
        return loss_N, select(ablation.select, loss_N)


def training_arguments(setup: TrainingSetup, output_dir: str | Path) -> TrainingArguments:
    """The budget in Trainer's terms. Precision is ours (`Numerics.autocast`), so Trainer's own stays off."""
    train = setup.train
    micro = train.micro_batch_size or train.batch_size
    return TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=train.batch_size // micro,
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
    trainer = TokenTrainer(model, setup, recorder, args=training_arguments(setup, work_dir), callbacks=[callback])
    # Trainer's own console callbacks would print every log a second time.
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    checkpoint = latest_checkpoint(work_dir)
    if checkpoint is not None:
        recorder.load(checkpoint)
        reporter.info(f"{name}: going on from step {recorder.last_step} of {setup.steps}")
    with callback.graceful_stop(), forward_to_tokens(model):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if callback.stop_requested and trainer.state.global_step < setup.steps:
        raise KeyboardInterrupt(
            f"{name}: stopped at step {trainer.state.global_step} of {setup.steps}; a checkpoint holds the state"
        )
    model.eval()
    return recorder
