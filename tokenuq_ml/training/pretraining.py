"""The training of a small model from scratch, on the documents of a synthetic language.

The loss is that of response tokens: prompts are drawn at random, and to learn their distribution is of no use here.

Shapes: B sequences, T positions.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tokenuq_ml.config.pretraining import PretrainingSpec
from tokenuq_ml.data.batching import LengthBucketSampler, TokenizedExample, collate
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.progress import Reporter
from tokenuq_ml.tracking.callback import TrackingCallback
from tokenuq_ml.training.checkpoints import CheckpointCallback
from tokenuq_ml.training.resumed import tracking_callbacks, train_resumed
from tokenuq_ml.training.setup import on_one_device, without_trackers
from tokenuq_ml.training.trainer import EpochLoader

IGNORED = -100
"""Label of positions without a loss, as transformers has it."""
SAVE_STEPS = 250
_LOG = "losses.json"


@dataclass
class PretrainingLog:
    """Loss and tokens of each step."""

    log_rows: list[dict] = field(default_factory=list)
    resumed_from: int = 0
    gather: Callable[[list], list] = lambda own: own
    _last: tuple[float, int] = (0.0, 0)

    @property
    def last_step(self) -> int:
        """The last step that was recorded; 0 before the first."""
        return len(self.log_rows)

    def add(self, loss: float, tokens: int) -> None:
        """Note the loss of the step that is being made."""
        self._last = loss, tokens

    def end_step(self, learning_rate: float, grad_norm: float) -> dict:
        """Add the step's row, and return it."""
        loss, tokens = self._last
        self.log_rows.append({"step": self.last_step + 1, "loss": loss, "tokens": tokens})
        return self.log_rows[-1]

    def save(self, folder: Path) -> None:
        """Write the rows to a checkpoint."""
        (folder / _LOG).write_text(json.dumps(self.log_rows))

    def load(self, folder: Path) -> None:
        """Replace the rows by those of a checkpoint."""
        self.log_rows = json.loads((folder / _LOG).read_text())
        self.resumed_from = self.last_step

    @property
    def figures(self) -> dict[str, int | float]:
        """What the asset shows."""
        last = self.log_rows[-max(1, len(self.log_rows) // 20) :]
        return {
            "steps": self.last_step,
            "resumed_from_step": self.resumed_from,
            "response_tokens_trained": sum(row["tokens"] for row in self.log_rows),
            "first_loss": self.log_rows[0]["loss"],
            "final_loss": sum(row["loss"] for row in last) / len(last),
        }


@dataclass(frozen=True)
class _Steps:
    steps: int
    snapshot_fractions: tuple[float, ...] = ()


class _PretrainingTrainer(Trainer):
    def __init__(
        self,
        model: PreTrainedModel,
        examples: Sequence[TokenizedExample],
        spec: PretrainingSpec,
        log: PretrainingLog,
        **kwargs: Any,
    ):
        super().__init__(model=model, train_dataset=examples, data_collator=_model_inputs, **kwargs)
        self.spec, self.log_of_steps = spec, log

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader whose order depends on (seed, epoch) only, so that a resumed training has the same."""
        lengths, batch_size = [len(one.input_ids) for one in self.train_dataset], self.spec.batch_size
        sampler = LengthBucketSampler(lengths, batch_size, batch_size, self.spec.seed)
        return EpochLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the mean loss of the batch's response tokens, and note it."""
        loss = model(**inputs).loss
        self.log_of_steps.add(float(loss.detach()), int((inputs["labels"] != IGNORED).sum()))
        return loss

    def floating_point_ops(self, inputs) -> int:
        """Return 0: the estimate is not used."""
        return 0


def pretrain(
    model: PreTrainedModel,
    examples: Sequence[TokenizedExample],
    spec: PretrainingSpec,
    numerics: Numerics,
    work_dir: Path,
    reporter: Reporter,
    name: str,
    tracking: TrackingCallback | None = None,
) -> PretrainingLog:
    """Train all weights of a model in place, from the last complete checkpoint in `work_dir` if there is one.

    Args:
        model: with new weights; in evaluation mode at the end.
        examples: the documents.
        spec: steps, batch size and so on.
        numerics: the device.
        work_dir: where checkpoints are written.
        reporter: gets progress messages.
        name: the start of each message.
        tracking: reports to experiment trackers.

    Raises:
        KeyboardInterrupt: SIGINT was received. A checkpoint holds the state, and the next call resumes from it.
    """
    log = PretrainingLog()
    checkpoints = CheckpointCallback(log, _Steps(spec.steps), work_dir, reporter, name)
    callbacks = [checkpoints, *tracking_callbacks(tracking, log)]
    trainer = _PretrainingTrainer(
        model, examples, spec, log, args=_arguments(spec, numerics, work_dir), callbacks=callbacks
    )
    # It would print every log a second time.
    trainer.remove_callback(PrinterCallback)
    with tracking or nullcontext():
        train_resumed(trainer, checkpoints, log, spec.steps, reporter, name)
    model.eval()
    return log


def _model_inputs(rows: list[TokenizedExample]) -> dict[str, Tensor]:
    """Return a batch with the ids of response tokens as labels. Padding is on the right, where no token sees it."""
    batch = collate(rows)
    return {
        "input_ids": batch.input_ids_BT,
        "labels": batch.input_ids_BT.masked_fill(~batch.response_BT, IGNORED),
    }


def _arguments(spec: PretrainingSpec, numerics: Numerics, work_dir: Path) -> TrainingArguments:
    arguments = on_one_device(
        TrainingArguments(
            output_dir=str(work_dir),
            max_steps=spec.steps,
            per_device_train_batch_size=spec.batch_size,
            learning_rate=spec.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(spec.warmup_ratio * spec.steps),
            weight_decay=spec.weight_decay,
            adam_beta2=0.98,
            optim="adamw_torch",
            seed=spec.seed,
            logging_steps=1,
            save_strategy="steps",
            save_steps=SAVE_STEPS,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=numerics.device == "cpu",
            dataloader_pin_memory=numerics.device == "cuda",
        )
    )
    return without_trackers(arguments)
