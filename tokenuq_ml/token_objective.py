"""The token-level objective as a mixin over any `transformers.Trainer`, ours or a user's own.

Replaces only how a training loss is computed: loop, optimiser, schedule, data and evaluation
stay the Trainer's. Knows formulas only by name (`selection.py`, `objectives.py`, `kernels.py`).

Shapes: B sequences, T positions, N response tokens of a micro-batch, D hidden size.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor

from tokenuq_ml import kernels
from tokenuq_ml.errors import InputError
from tokenuq_ml.models import forward_to_tokens
from tokenuq_ml.objectives import distillation, token_weights
from tokenuq_ml.selection import select
from tokenuq_ml.specs import AblationSpec
from tokenuq_ml.teacher import OnlineTeacher, TeacherSource

IGNORED = -100
"""The label of tokens that are not trained, as everywhere in transformers."""


class LabelledInputs:
    """A batch of a user's own Trainer: `labels` say which tokens are trained, the rest goes to the model."""

    def __init__(self, inputs: dict[str, Any]):
        self.model_inputs = {key: value for key, value in inputs.items() if key != "labels"}
        self.labels_BT = inputs["labels"]
        self._response_BT = self.labels_BT[:, 1:] != IGNORED

    @property
    def tokens(self) -> int:
        return int(self._response_BT.sum())

    @property
    def label_N(self) -> Tensor:
        return self.labels_BT[:, 1:][self._response_BT]

    def predicting(self, hidden_BTD: Tensor) -> Tensor:
        """`hidden_ND`: the states from which the response tokens are predicted."""
        return hidden_BTD[:, :-1][self._response_BT]


class Selected(NamedTuple):
    """What the selection pass found of a micro-batch."""

    loss_N: Tensor
    mask_N: Tensor


class TokenObjective:
    """Mixin: `class MyTrainer(TokenObjective, SFTTrainer)`.

    The objective of an optimiser batch with N response tokens over all micro-batches and ranks is
    `(1/N) * sum_n selected_n ? CE_n : weight * divergence(teacher_n, student_n)` (arXiv 2503.16511): one
    division, and one quantile, so that accumulation, padding and ranks change nothing. The logged loss is
    that number; evaluation losses stay the Trainer's own.

    Args:
        ablation: which tokens are trained and how; a dict of the grammar of `config/ablations.yaml`.
        teacher: where distillation gets its teacher from, whatever the ablation calls it; default: the model
            without its adapter.

    Raises:
        InputError: something is distilled, and neither an adapter nor `teacher` says from what.
    """

    # The loss is divided by the optimiser batch's tokens already.
    loss_is_scaled_for_ga = True

    def __init__(self, *args, ablation: AblationSpec | dict, teacher: TeacherSource | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if isinstance(ablation, dict):
            ablation = AblationSpec(**{"name": "custom", **ablation})
        self.ablation, self.distillation = ablation, distillation(ablation)
        if self.distillation and teacher is None and not isinstance(self.model, PeftModel):
            raise InputError(
                "the ablation distils, and a model without an adapter has no base model beneath it to learn from; "
                "pass teacher=SeparateTeacher(model)"
            )
        self.teacher = teacher or OnlineTeacher(None)
        self.selection_seconds = 0.0
        """Time spent in loss passes that only select: 0 with one micro-batch on one rank."""
        self._micro_batches: list = []
        self._selected: list[Selected] = []
        self._next = 0

    # What a subclass may replace.

    def token_batch(self, inputs: dict[str, Any]):
        """The micro-batch with `model_inputs`, `tokens`, `label_N` and `predicting(hidden_BTD)`."""
        return LabelledInputs(inputs)

    def static_mask(self, batch) -> Tensor | None:
        """`mask_N` where the selection does not follow from the student's losses."""
        return None

    def record(self, batch, selected_N: Tensor, out: kernels.TrainingLoss, tokens_of_step: int) -> None:
        """Called once a micro-batch, with what was computed."""

    # What Trainer calls.

    def train(self, *args, **kwargs):
        with forward_to_tokens(self.model):
            return super().train(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of an optimiser step, and its number of response tokens over all ranks."""
        samples = [inputs for _, inputs in zip(range(num_batches), epoch_iterator, strict=False)]
        samples = [self._prepare_inputs(inputs) for inputs in samples]
        self._micro_batches = [self.token_batch(inputs) for inputs in samples]
        self._selected, self._next = [], 0
        tokens = torch.tensor(sum(batch.tokens for batch in self._micro_batches), device=device)
        # A step without any response token has the loss 0, not 0 / 0.
        return samples, self.accelerator.gather(tokens).sum().clamp(min=1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._selects_by_student and not self._selected and self._shares_the_quantile:
            self._select_over_optimiser_batch(model)
        index, self._next = self._next, self._next + 1
        batch = self._micro_batches[index]
        loss = model(**batch.model_inputs, token_function=partial(self._objective, index, num_items_in_batch))
        # DDP averages gradients over ranks; the division is by the tokens of all of them.
        return loss * self.accelerator.num_processes

    @property
    def _selects_by_student(self) -> bool:
        return self.ablation.select.by != "all" and self.static_mask(self._micro_batches[0]) is None

    @property
    def _shares_the_quantile(self) -> bool:
        """Whether the optimiser batch is more than this micro-batch."""
        return len(self._micro_batches) > 1 or self.accelerator.num_processes > 1

    @torch.no_grad()
    def _select_over_optimiser_batch(self, model) -> None:
        """The selection over all micro-batches and ranks, by a loss pass that leaves the generators as they were.

        Run at the first micro-batch rather than where batches are fetched, because on
        resumption Trainer restores the generators in between.
        """
        started = time.monotonic()
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            losses = [
                model(**batch.model_inputs, token_function=partial(_losses, batch)) for batch in self._micro_batches
            ]
        ranks = [torch.cat(losses).cpu()]
        if self.accelerator.num_processes > 1:
            ranks = gather_object(ranks)
        before = sum(len(loss_N) for loss_N in ranks[: self.accelerator.process_index])
        own = sum(len(loss_N) for loss_N in losses)
        mask = select(self.ablation.select, torch.cat(ranks))[before : before + own].to(losses[0].device)
        self._selected = [
            Selected(*both) for both in zip(losses, mask.split([len(loss_N) for loss_N in losses]), strict=True)
        ]
        self.selection_seconds += time.monotonic() - started

    def _objective(self, index: int, tokens_of_step: Tensor, hidden_BTD: Tensor, head: kernels.Head) -> Tensor:
        """The micro-batch's share of the optimiser batch's loss; runs inside the wrapped model's forward."""
        batch, distil = self._micro_batches[index], self.distillation
        choice: dict[str, Tensor] = {}

        def weigh(loss_N: Tensor) -> kernels.Weights:
            static = self.static_mask(batch)
            choice["mask"] = select(self.ablation.select, loss_N) if static is None else static.to(loss_N.device)
            return token_weights(self.ablation, choice["mask"])

        weights: kernels.Weights | Callable[[Tensor], kernels.Weights] = weigh
        if self._selected:
            choice["mask"] = self._selected[index].mask_N
            weights = token_weights(self.ablation, choice["mask"])
        elif self.ablation.select.by == "all" and self.ablation.selected.kind == "mle":
            # Every loss is known from the training pass itself.
            weights = weigh(torch.zeros(batch.tokens, device=hidden_BTD.device))
        out = kernels.training_loss(
            batch.predicting(hidden_BTD),
            head,
            batch.label_N,
            weights,
            self.teacher.states(self.model, batch) if distil else None,
            distil.divergence if distil else "forward_kl",
            distil.temperature if distil else 1.0,
            getattr(self.teacher, "head", None),
        )
        if self._selected:
            out = out._replace(loss_N=self._selected[index].loss_N)
        self.record(batch, choice["mask"], out, int(tokens_of_step))
        return out.total / tokens_of_step


def _losses(batch, hidden_BTD: Tensor, head: kernels.Head) -> Tensor:
    return kernels.token_losses(batch.predicting(hidden_BTD), head, batch.label_N)
