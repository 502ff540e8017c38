"""Stop a training at the step whose loss, gradient or weights are not finite, by name.

The Trainer trains on with NaN, and hides it from its log (`logging_nan_inf_filter`). Here a step is checked before its
result is used: the loss of each micro-batch after its forward pass, the norm of the gradient before the optimiser's
step, and the trained weights before they are saved and at the end. The last good checkpoint stays the last one.

On a CPU, a micro-batch's loss is read after its forward pass. On an accelerator, the flags of a step's micro-batches
are read together with the norm of its gradient: with a fused optimiser a step later, which waits for nothing
(`step_flags.py`); else before the optimiser's step, or the weights would no longer be those that failed, and the module
that fails could not be found. The Trainer's filter, which waits for the device twice per micro-batch, is off meanwhile.

Shapes: N response tokens of a micro-batch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tokenuq_ml.errors import NonFiniteError
from tokenuq_ml.kernels.backend import backend_of
from tokenuq_ml.kernels.training_loss import TrainingLoss
from tokenuq_ml.models.non_finite import first_non_finite_module, is_finite, non_finite_weights, output_layer_name
from tokenuq_ml.models.sharding import is_sharded
from tokenuq_ml.seeding import replayed_generators
from tokenuq_ml.training.decisions import MicroBatch
from tokenuq_ml.training.step_flags import StepFlags, skipping_optimizer
from tokenuq_ml.training.token_batch import TokenBatch

NAMED_EXAMPLES = 5
"""How many examples a message names."""

STOPPED = "Training stopped before the step changed the weights"

LOSS, DIVERGENCE, WEIGHT = "the loss", "the divergence to the teacher", "the weight in the objective"


class FiniteSteps:
    """Mixin of `TokenObjective`: raises `NonFiniteError` instead of training on."""

    # What Trainer calls.

    def train(self, *args, **kwargs):
        """Train as the Trainer does.

        Raises:
            NonFiniteError: a loss, the gradient or a trained weight was not finite.
        """
        # The filter would replace in the log what is raised here.
        filters, self.args.logging_nan_inf_filter = self.args.logging_nan_inf_filter, False
        try:
            result = super().train(*args, **kwargs)
            self._read_postponed()
        finally:
            self.args.logging_nan_inf_filter, self._postponed = filters, None
            if (optimizer := self.optimizer and skipping_optimizer(self)) is not None:
                optimizer.found_inf = None
        self._require_finite_weights()
        return result

    def training_step(self, *args, **kwargs):
        """Run a micro-batch, and keep its loss for the message about a gradient that is not finite."""
        loss = super().training_step(*args, **kwargs)
        if self._losses_of_step != self._current_step:
            self._losses_of_step, self._returned_losses = self._current_step, []
        self._returned_losses.append(loss)
        return loss

    _losses_of_step = 0

    def _get_grad_norm(self, *args, **kwargs):
        norm = super()._get_grad_norm(*args, **kwargs)
        self._read_postponed()
        unread, self._unread_flags = self._unread_flags, ()
        if unread and type(norm) is Tensor and norm.device == unread[0][1].device:
            flags = StepFlags.of(self._current_step, unread, norm)
            if (optimizer := skipping_optimizer(self)) is not None:
                optimizer.found_inf, self._postponed = flags.skip, flags
                return norm
            norm = flags.read()
        else:
            for micro_batch, flag in unread:
                micro_batch.is_finite = bool(flag)
        for micro_batch, _ in unread:
            self.require_finite_loss(micro_batch)
        if not math.isfinite(float(norm)):
            # A scaler for float16 finds its scale by gradients that overflow, and skips their steps.
            scales = getattr(self.accelerator, "scaler", None) is not None
            if not scales or not all(is_finite(loss) for loss in self._returned_losses):
                raise NonFiniteError(self._gradient_message(float(norm), list(self._step_batches)))
        return norm

    _postponed: StepFlags | None = None
    """What is still to be read of the last step."""

    def _read_postponed(self) -> None:
        """Raise if the last step, which then was left out, had a loss or a gradient that was not finite."""
        flags, self._postponed = self._postponed, None
        if flags is None:
            return
        norm, self._step_of_message = flags.read(), flags.step
        for micro_batch in flags.micro_batches:
            self.require_finite_loss(micro_batch)
        if not math.isfinite(norm):
            raise NonFiniteError(self._gradient_message(norm, flags.micro_batches, has_gradients=False))
        self._step_of_message = None

    def log(self, *args, **kwargs):
        """Log as the Trainer does, which waits for the device; a step that is logged was finite."""
        self._read_postponed()
        return super().log(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        self._read_postponed()
        self._require_finite_weights()
        return super()._save_checkpoint(*args, **kwargs)

    # What `TokenObjective` calls.

    _unread_flags: tuple[tuple[MicroBatch, Tensor], ...] = ()
    """Of each micro-batch since the last step, on an accelerator: whether its loss is finite."""

    def may_be_recorded(self, micro_batch: MicroBatch, out: TrainingLoss) -> bool:
        """Note whether the micro-batch's loss is finite; return False if it is known not to be."""
        is_finite_loss = torch.isfinite(out.total.detach())
        # Kept for the message. Without its graph, which would hold the pass in memory.
        micro_batch.out = out._replace(total=out.total.detach())
        if backend_of(out.total).is_accelerator:
            self._unread_flags = (*self._unread_flags, (micro_batch, is_finite_loss))
            return True
        micro_batch.is_finite = bool(is_finite_loss)
        return micro_batch.is_finite

    def require_finite_loss(self, micro_batch: MicroBatch) -> None:
        """Raise if the micro-batch, whose forward pass has just run, has a loss that is not finite."""
        if not micro_batch.is_finite:
            assert micro_batch.out is not None
            raise NonFiniteError(self._loss_message(micro_batch, *_cause(micro_batch.out)))

    def require_finite_losses(self, micro_batches: Sequence[MicroBatch], losses: Sequence[Tensor]) -> None:
        """Raise if a loss by which the optimiser batch is selected is not finite; `losses` are on the CPU."""
        for micro_batch, loss_N in zip(micro_batches, losses, strict=True):
            if not is_finite(loss_N):
                raise NonFiniteError(self._loss_message(micro_batch, LOSS, ~torch.isfinite(loss_N)))

    def require_finite_values(self, batch: TokenBatch, columns: dict[str, Tensor], weight_N: Tensor | None) -> None:
        """Raise if a column or a weight of the data is not finite: a selection would take NaN for the largest score."""
        given = {f"token_columns[{name!r}]": column_N for name, column_N in columns.items()}
        for name, value_N in (given if weight_N is None else given | {"data_weights": weight_N}).items():
            if not is_finite(value_N):
                bad_N = ~torch.isfinite(value_N)
                raise NonFiniteError(
                    f"step {self._current_step}: {name} is not finite for {self._tokens_of(batch, bad_N)}"
                )

    def _require_finite_weights(self) -> None:
        """Raise if a trained weight is not finite; run before weights are saved."""
        trained = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        broken = non_finite_weights(trained)
        if broken:
            raise NonFiniteError(
                f"after step {self.state.global_step}, {len(broken)} of {len(trained)} trained weights are not finite "
                f"(first: {broken[0]}), although loss and gradient were: the optimiser's update overflowed; lower the "
                "learning rate, or train weights in float32. Nothing was saved after the step"
            )

    # The messages.

    def _loss_message(self, micro_batch: MicroBatch, what: str, bad_N: Tensor) -> str:
        origin = self._origin([micro_batch])
        if origin is None and what == LOSS:
            origin = f"the outputs of all modules are finite but the logits of {output_layer_name(self.model)}"
        elif origin is None and what == DIVERGENCE:
            origin = "the outputs of all modules of the student are finite, so the teacher's distributions are not"
        elif origin is None:
            origin = "the outputs of all modules are finite; check your objective"
        tokens = self._tokens_of(micro_batch.batch, bad_N)
        return f"step {self._current_step}: {what} is not finite for {tokens}; {origin}. {STOPPED}"

    def _gradient_message(self, norm: float, micro_batches: list[MicroBatch], has_gradients: bool = True) -> str:
        examples = [
            name for number, one in enumerate(micro_batches) for name in self._named_examples(one.batch, number)
        ]
        origin = self._origin(micro_batches)
        if origin is None and all(is_finite(loss) for loss in self._returned_losses):
            origin = (
                "losses and the outputs of all modules are finite, so the backward pass overflowed (in float16? train "
                "in bfloat16 or float32)"
            )
        elif origin is None:
            origin = "the loss of the objective is finite, but not a term that a subclass or the router adds to it"
        weights = self.model.named_parameters() if has_gradients else ()
        grads = [(name, weight.grad) for name, weight in weights if weight.grad is not None]
        broken = non_finite_weights(grads)
        # Clipping by a norm of NaN makes every gradient NaN; one of infinity leaves those NaN that were infinite.
        first = f", first in {broken[0]}" if 0 < len(broken) < len(grads) else ""
        return (
            f"step {self._current_step}: the norm of the gradient is {norm}{first} ({_listed(examples)}); "
            f"{origin}. {STOPPED}"
        )

    @property
    def _current_step(self) -> int:
        """The step that is being made, or that a message is about, from 1."""
        return self._step_of_message or self.state.global_step + 1

    _step_of_message: int | None = None

    def _origin(self, micro_batches: Sequence[MicroBatch]) -> str | None:
        """Return the first module with an output that is not finite; None if all outputs are finite.

        Not of a sharded model, whose passes all processes would have to make.

        Repeats the forward passes with the weights and dropout masks of the failure, until one fails.
        """
        if is_sharded(self.model):
            return "the module is not looked for in a sharded model"
        for micro_batch in micro_batches:

            def run(micro_batch: MicroBatch = micro_batch) -> None:
                inputs = micro_batch.batch.model_inputs
                with replayed_generators(micro_batch.generators), self.compute_loss_context_manager():
                    self.model(**inputs, token_function=lambda states, head: states.sum())

            try:
                module = first_non_finite_module(self.model, run)
            except Exception as error:  # Whatever stops the search must not hide what was found.
                return f"the pass that looks for the module failed ({type(error).__name__}: {error})"
            if module is not None:
                return f"the first module whose output is not finite is {module}"
        return None

    def _tokens_of(self, batch: TokenBatch, bad_N: Tensor) -> str:
        """Return how many of a micro-batch's tokens are marked, and of which examples."""
        return (
            f"{int(bad_N.sum())} of {len(bad_N)} response tokens ({_listed(self._named_examples(batch, bad_N=bad_N))})"
        )

    def _named_examples(self, batch: TokenBatch, number: int = 0, bad_N: Tensor | None = None) -> list[str]:
        """Return the ids of the examples, or where they are in the batch; with `bad_N`, of those tokens only."""
        example_N, ids = batch.example_N, self.example_ids(batch)
        if bad_N is not None:
            example_N = example_N[bad_N.to(example_N.device)]
        place = f" of micro-batch {number}" if len(self._step_batches) > 1 and bad_N is None else ""
        unit = getattr(batch, "unit", "example")
        return [ids[index] if ids else f"{unit} {index}{place}" for index in example_N.unique().tolist()]


def _listed(examples: list[str]) -> str:
    more = f" and {len(examples) - NAMED_EXAMPLES} more" if len(examples) > NAMED_EXAMPLES else ""
    return (", ".join(examples[:NAMED_EXAMPLES]) or "no example") + more


def _cause(out: TrainingLoss) -> tuple[str, Tensor]:
    """Return what of a micro-batch is not finite, and for which of the N tokens."""
    mle_N, distill_N = out.weights
    for what, values in ((LOSS, [out.loss_N]), (DIVERGENCE, [out.divergence_N]), (WEIGHT, [mle_N, distill_N])):
        bad_N = ~torch.stack([torch.isfinite(value_N) for value_N in values]).all(0)
        if bad_N.any():
            return what, bad_N
    return "the sum of the losses", torch.ones_like(mle_N, dtype=torch.bool)
