"""A LoRA adapter whose active rank grows as the loss of the selected tokens falls.

PEFT cannot grow a rank in place, so the adapter has its last rank from the start, and the ranks above the active
one are masked: their weights add nothing, they get no gradient and have no optimiser state. alpha / r stays what
it is. No operation is saved by it. Knows the rows of the training log, and not how a loss is computed.

The rule is ours (an open question of arXiv 2503.16511). With m the running mean of the selected tokens' mean loss,
`m_1 = l_1` and `m_t = 0.8 m_(t-1) + 0.2 l_t`,
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

KEPT = 0.8


def active_rank(losses: Iterable[float], growth: RankGrowth, last: int) -> int:
    """The rank after steps with these mean losses of the selected tokens, nats."""
    mean, first, rank = None, None, growth.start
    for loss in losses:
        mean = loss if mean is None else KEPT * mean + (1 - KEPT) * loss
        first = mean if first is None else first
        share = (1 - mean / first) / growth.fall if first > 0 else 1.0
        rank = max(rank, round(growth.start + (last - growth.start) * min(1.0, max(0.0, share))))
    return rank


class RankGrowthCallback(TrainerCallback):
    """Masks the active adapter of `model` above its active rank, which each step's record sets anew.

    The records are in every checkpoint, so that a restart finds the same rank.

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
            # The axis along which ranks lie: rows of A `[r, I]`, columns of B `[O, r]`.
            (parameter, 0 if "lora_A" in path else 1)
            for path, parameter in model.named_parameters()
            if name in path and parameter.requires_grad and ("lora_A" in path or "lora_B" in path)
        ]
        self._above: list[Tensor] = []

    def on_train_begin(self, args, state, control, **kwargs):
        # After a checkpoint is loaded: what lies above the active rank is as it was drawn, in any checkpoint.
        self._above = [
            parameter.detach().clone() if axis == 0 else torch.zeros_like(parameter)
            for parameter, axis in self.parameters
        ]
        self._hooks = [
            parameter.register_hook(lambda grad, axis=axis: self._masked(grad, axis))
            for parameter, axis in self.parameters
        ]

    def on_step_begin(self, args, state, control, **kwargs):
        losses = [row["mle_loss"] for row in self.recorder.log_rows if row["mle_loss"] is not None]
        self.recorder.lora_rank = active_rank(losses, self.growth, self.last)
        self._mask_weights()

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self._mask_weights()
        for parameter, axis in self.parameters:
            for moment in optimizer.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    moment[self._inactive(axis)] = 0

    def on_train_end(self, args, state, control, **kwargs):
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _mask_weights(self) -> None:
        """A's as they were drawn, which weight decay would shrink; B's zero, so that both add nothing."""
        for (parameter, axis), above in zip(self.parameters, self._above, strict=True):
            parameter[self._inactive(axis)] = above[self._inactive(axis)]

    def _inactive(self, axis: int) -> tuple[slice, ...]:
        return (slice(None),) * axis + (slice(self.recorder.lora_rank, None),)

    def _masked(self, grad: Tensor, axis: int) -> Tensor:
        grad = grad.clone()
        grad[self._inactive(axis)] = 0
        return grad
