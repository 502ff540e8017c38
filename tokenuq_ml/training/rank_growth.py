"""A LoRA adapter whose active rank grows as the loss of the selected tokens falls.

PEFT cannot grow a rank in place, so the adapter has its last rank from the start, and the ranks above the active one
are masked: their weights have no effect, no gradient and no optimiser state. The scale alpha / r is constant. Masking
saves no operations.

The rule is ours (the question is open in arXiv 2503.16511). With `l_t` the mean loss of the selected tokens at step t,
and its running mean `m_1 = l_1`, `m_t = 0.8 m_(t-1) + 0.2 l_t`,
`rank = start + (last - start) * min(1, (1 - m / m_1) / fall)`, rounded, and never smaller than before.

Shapes: r rank as allocated, I and O features in and out.
"""

from collections.abc import Iterable

import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback

from tokenuq_ml.config import RankGrowth
from tokenuq_ml.errors import InputError
from tokenuq_ml.training.recorder import StepRecorder

DECAY = 0.8
"""Weight of the earlier steps in the running mean."""


def active_rank(losses: Iterable[float], growth: RankGrowth, last: int) -> int:
    """Return the active rank after some steps.

    Args:
        losses: mean loss of the selected tokens at each step, in nats.
        growth: rank at the start, and the fall of the loss that brings the last rank.
        last: the adapter's rank as allocated.
    """
    mean, first, rank = None, None, growth.start
    for loss in losses:
        mean = loss if mean is None else DECAY * mean + (1 - DECAY) * loss
        first = mean if first is None else first
        share = (1 - mean / first) / growth.fall if first > 0 else 1.0
        rank = max(rank, round(growth.start + (last - growth.start) * min(1.0, max(0.0, share))))
    return rank


class RankGrowthCallback(TrainerCallback):
    """Trainer callback that masks the adapter above its active rank.

    The active rank of a step follows from the recorded losses of the steps before. Checkpoints hold these records, so
    a resumed training has the same rank.

    Args:
        model: its active adapter is masked.
        growth: the rule's parameters.
        recorder: has the losses, and gets the active rank.

    Raises:
        InputError: the adapter's rank is below `growth.start`.
    """

    def __init__(self, model: PeftModel, growth: RankGrowth, recorder: StepRecorder):
        self.growth, self.recorder = growth, recorder
        self.last = model.peft_config[model.active_adapter].r
        if growth.start > self.last:
            raise InputError(f"rank_growth.start {growth.start} is above the adapter's rank {self.last}; lower it")
        name = f".{model.active_adapter}."
        self.parameters = [
            # The axis of the ranks: rows of A `[r, I]`, columns of B `[O, r]`.
            (parameter, 0 if "lora_A" in path else 1)
            for path, parameter in model.named_parameters()
            if name in path and parameter.requires_grad and ("lora_A" in path or "lora_B" in path)
        ]
        self._initial: list[Tensor] = []

    def on_train_begin(self, args, state, control, **kwargs):
        """Keep the initial weights, and mask gradients."""
        # Called after a checkpoint is loaded, but weights above the active rank have their initial values in every one.
        self._initial = [
            parameter.detach().clone() if axis == 0 else torch.zeros_like(parameter)
            for parameter, axis in self.parameters
        ]
        self._hooks = [
            parameter.register_hook(lambda grad, axis=axis: self._masked(grad, axis))
            for parameter, axis in self.parameters
        ]

    def on_step_begin(self, args, state, control, **kwargs):
        """Set the step's active rank."""
        losses = [row["mle_loss"] for row in self.recorder.log_rows if row["mle_loss"] is not None]
        self.recorder.lora_rank = active_rank(losses, self.growth, self.last)
        self._mask_weights()

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Undo what the optimiser did above the active rank."""
        self._mask_weights()
        for parameter, axis in self.parameters:
            for moment in optimizer.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    moment[self._inactive(axis)] = 0

    def on_train_end(self, args, state, control, **kwargs):
        """Stop masking gradients."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _mask_weights(self) -> None:
        """Reset weights above the active rank: A to its initial values, which weight decay shrinks, and B to 0."""
        for (parameter, axis), initial in zip(self.parameters, self._initial, strict=True):
            parameter[self._inactive(axis)] = initial[self._inactive(axis)]

    def _inactive(self, axis: int) -> tuple[slice, ...]:
        return (slice(None),) * axis + (slice(self.recorder.lora_rank, None),)

    def _masked(self, grad: Tensor, axis: int) -> Tensor:
        grad = grad.clone()
        grad[self._inactive(axis)] = 0
        return grad
