"""The token-level objective as a mixin over any `transformers.Trainer`, ours or a user's own.

Replaces only how a training loss is computed: loop, optimiser, schedule, data and evaluation
stay the Trainer's. Knows formulas only by name (`selection.py`, `objectives.py`, `kernels.py`).

Shapes: B sequences, T positions, N response tokens of a micro-batch, D hidden size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor

from tokenuq_ml.config import AblationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.scores import token_losses
from tokenuq_ml.kernels.training_loss import TrainingLoss, Weights, training_loss
from tokenuq_ml.models.forward import accept_token_function
from tokenuq_ml.training.objectives import token_gain, token_weights
from tokenuq_ml.training.phase_clock import PhaseClock
from tokenuq_ml.training.selection import Tokens, join, select
from tokenuq_ml.training.teacher import OnlineTeacher, TeacherSource

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

    @property
    def example_N(self) -> Tensor:
        """int64: the row of each token."""
        return self._response_BT.nonzero()[:, 0]

    def predicting(self, hidden_BTD: Tensor) -> Tensor:
        """`hidden_ND`: the states from which the response tokens are predicted."""
        return hidden_BTD[:, :-1][self._response_BT]


class Decided(NamedTuple):
    """What was decided of a micro-batch together with the others of its optimiser batch."""

    loss_N: Tensor | None
    """None where no pass was needed for it."""
    mask_N: Tensor
    weights: Weights


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
        self.ablation, self.distillation = ablation, ablation.distillation
        if self.distillation and teacher is None and not isinstance(self.model, PeftModel):
            raise InputError(
                "the ablation distils, and a model without an adapter has no base model beneath it to learn from; "
                "pass teacher=SeparateTeacher(model)"
            )
        self.teacher = teacher or OnlineTeacher(None)
        self.clock = PhaseClock(self.args.device)
        """Seconds by phase: forward, head, backward, teacher, selection, other."""
        self.selection_passes = 0
        """Forward passes that only select: none with one micro-batch on one rank."""
        self._micro_batches: list = []
        self._decided: list[Decided] = []
        self._next = 0

    @property
    def selection_seconds(self) -> float:
        """Spent on what only selects: 0 with one micro-batch on one rank."""
        return self.clock.seconds().get("selection", 0.0)

    # What a subclass may replace.

    def token_batch(self, inputs: dict[str, Any]):
        """The micro-batch with `model_inputs`, `tokens`, `label_N`, `example_N` and `predicting(hidden_BTD)`."""
        return LabelledInputs(inputs)

    def token_columns(self, batch) -> dict[str, Tensor]:
        """`[N]` each, by the names of `registry.COLUMNS`: what the ablation reads of the teacher's tables."""
        return {}

    def example_ids(self, batch) -> tuple[str, ...]:
        """Ids of the micro-batch's examples, where they have any."""
        return ()

    teacher_mean = float("nan")
    """Mean of the teacher's loss over the train split, nats, for thresholds that go by it."""

    def static_mask(self, batch) -> Tensor | None:
        """`mask_N` where the selection was decided before training."""
        return None

    records_losses = False
    """Whether `record` wants the loss of every token, those that are not trained included."""

    def record(self, batch, selected_N: Tensor, out: TrainingLoss, tokens_of_step: int) -> None:
        """Called once a micro-batch, with what was computed."""

    # What Trainer calls.

    def train(self, *args, **kwargs):
        with accept_token_function(self.model):
            try:
                return super().train(*args, **kwargs)
            finally:
                self.clock.stop()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of an optimiser step, and its number of response tokens over all ranks."""
        self.clock.start()
        samples = [inputs for _, inputs in zip(range(num_batches), epoch_iterator, strict=False)]
        samples = [self._prepare_inputs(inputs) for inputs in samples]
        self._micro_batches = [self.token_batch(inputs) for inputs in samples]
        self._decided, self._next = [], 0
        tokens = torch.tensor(sum(batch.tokens for batch in self._micro_batches), device=device)
        # A step without any response token has the loss 0, not 0 / 0.
        return samples, self.accelerator.gather(tokens).sum().clamp(min=1)

    def training_step(self, *args, **kwargs):
        # What is not the forward pass, which has phases of its own.
        with self.clock.phase("backward"):
            return super().training_step(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._decides_together and not self._decided:
            with self.clock.phase("selection"):
                self._decide(model)
        index, self._next = self._next, self._next + 1
        batch = self._micro_batches[index]
        with self.clock.phase("forward"):
            loss = model(**batch.model_inputs, token_function=partial(self._objective, index, num_items_in_batch))
        # DDP averages gradients over ranks; the division is by the tokens of all of them.
        return loss * self.accelerator.num_processes

    @property
    def _decides_together(self) -> bool:
        """Whether the optimiser batch is more than this micro-batch, and a token's treatment depends on all of it."""
        if len(self._micro_batches) == 1 and self.accelerator.num_processes == 1:
            return False
        selects = not self.ablation.select.takes_all and self.static_mask(self._micro_batches[0]) is None
        return selects or bool(self.ablation.functions)

    def _tokens(self, batch, loss_N: Tensor) -> Tokens:
        device = loss_N.device
        return Tokens(
            loss_N,
            batch.example_N.to(device),
            tuple(self.example_ids(batch)),
            {name: column_N.to(device) for name, column_N in self.token_columns(batch).items()},
            self.teacher_mean,
            self.state.global_step + 1,
            self.state.max_steps,
            self.ablation.seed,
        )

    def _select(self, batch, tokens: Tokens) -> Tensor:
        static = self.static_mask(batch)
        return select(self.ablation.select, tokens) if static is None else static.to(tokens.loss_N.device)

    @torch.no_grad()
    def _decide(self, model) -> None:
        """Selection and weights over all micro-batches and ranks; a loss pass, where losses are needed for it,
        leaves the generators as they were.

        Run at the first micro-batch rather than where batches are fetched, because on
        resumption Trainer restores the generators in between.
        """
        batches = self._micro_batches
        if self.ablation.needs_student_losses:
            devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
            with torch.random.fork_rng(devices=devices):
                losses = [model(**batch.model_inputs, token_function=partial(_losses, batch)) for batch in batches]
            self.selection_passes += len(batches)
        else:
            losses = [torch.zeros(batch.tokens) for batch in batches]
        parts = [self._tokens(batch, loss_N.cpu()) for batch, loss_N in zip(batches, losses, strict=True)]
        before, everyone = 0, parts
        if self.accelerator.num_processes > 1:
            ranks = gather_object([join(parts)])
            before = sum(len(part.loss_N) for part in ranks[: self.accelerator.process_index])
            everyone = ranks
        tokens = join(everyone)
        masks = [self.static_mask(batch) for batch in batches]
        if masks[0] is None:
            mask_N = select(self.ablation.select, tokens)
        else:
            own = [torch.cat(masks)]
            mask_N = torch.cat(gather_object(own) if self.accelerator.num_processes > 1 else own)
        weights = token_weights(self.ablation, mask_N, tokens)
        for loss_N in losses:
            rows = slice(before, before := before + len(loss_N))
            own = (column_N[rows].to(self.args.device) for column_N in (mask_N, *weights))
            mask, *weighed = own
            known = loss_N if self.ablation.needs_student_losses else None
            self._decided.append(Decided(known, mask, Weights(*weighed)))

    def _objective(self, index: int, tokens_of_step: Tensor, hidden_BTD: Tensor, head: Head) -> Tensor:
        """The micro-batch's share of the optimiser batch's loss; runs inside the wrapped model's forward."""
        batch, distil = self._micro_batches[index], self.distillation
        choice: dict[str, Tensor] = {}

        def weigh(loss_N: Tensor) -> Weights:
            tokens = self._tokens(batch, loss_N)
            choice["mask"] = self._select(batch, tokens)
            return token_weights(self.ablation, choice["mask"], tokens)

        weights: Weights | Callable[[Tensor], Weights] = weigh
        decided = self._decided[index] if self._decided else None
        if decided is not None:
            choice["mask"], weights = decided.mask_N, decided.weights
        elif not self.ablation.needs_student_losses:
            weights = weigh(torch.zeros(batch.tokens, device=hidden_BTD.device))
        teacher = None
        if distil:
            with self.clock.phase("teacher"):
                teacher = self.teacher.states(self.model, batch)
        with self.clock.phase("head"):
            out = training_loss(
                batch.predicting(hidden_BTD),
                head,
                batch.label_N,
                weights,
                teacher,
                distil.divergence if distil else "forward_kl",
                distil.temperature if distil else 1.0,
                getattr(self.teacher, "head", None),
                (lambda *block: token_gain(self.ablation, choice["mask"])(*block))
                if self.ablation.scales_loss
                else None,
                self.records_losses and (decided is None or decided.loss_N is None),
            )
        if decided is not None and decided.loss_N is not None:
            out = out._replace(loss_N=decided.loss_N)
        self.record(batch, choice["mask"], out, int(tokens_of_step))
        return out.total / tokens_of_step


def _losses(batch, hidden_BTD: Tensor, head: Head) -> Tensor:
    return token_losses(batch.predicting(hidden_BTD), head, batch.label_N)
