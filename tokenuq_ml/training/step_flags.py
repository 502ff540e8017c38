"""Whether the losses and the gradient of an optimiser step are finite, on their way from an accelerator to the host.

To read them, the host would wait for the device before each step of the optimiser, and the device then for the host. A
fused optimiser of PyTorch leaves a step out if a flag on the device says so (`found_inf`, by which gradient scaling
works), so that the host may read one step later, when the copy is there, and the weights are still those that failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenuq_ml.training.decisions import MicroBatch
from tokenuq_ml.transfers import HostCopy


@dataclass(frozen=True)
class StepFlags:
    """What the host will read of a step."""

    step: int
    """The step's number, from 1."""
    micro_batches: list[MicroBatch]
    skip: Tensor
    """float32 `[]`, on the device: 1 if the step is to be left out, else 0."""
    _copy: HostCopy
    """A flag for the loss of each micro-batch, 1 if it is finite, and the norm of the gradient."""

    @classmethod
    def of(cls, step: int, flags: Sequence[tuple[MicroBatch, Tensor]], norm: Tensor) -> "StepFlags":
        """Return the flags of a step; their copy to the host starts now.

        Args:
            step: its number, from 1.
            flags: of each micro-batch, whether its loss is finite.
            norm: of the gradient.
        """
        values = torch.stack([*(flag.float() for _, flag in flags), norm.detach().float()])
        finite = torch.isfinite(values).float() * (values[:-1].amin() > 0)
        return cls(step, [one for one, _ in flags], 1 - finite.amin(), HostCopy(values))

    def read(self) -> float:
        """Note at each micro-batch whether its loss is finite; return the norm of the gradient."""
        (values,) = self._copy.wait()
        *flags, norm = values.tolist()
        for micro_batch, flag in zip(self.micro_batches, flags, strict=True):
            micro_batch.is_finite = flag > 0
        return norm


def skipping_optimizer(trainer: Any) -> Any:
    """Return a Trainer's optimiser if it leaves out a step that a flag on the device tells it to; else None.

    Not of several processes, which would have to agree, nor with gradient scaling, which sets the flag itself.
    """
    if trainer.accelerator.num_processes > 1 or getattr(trainer.accelerator, "scaler", None) is not None:
        return None
    # accelerate wraps the optimiser.
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    fused = all(group.get("fused") for group in getattr(optimizer, "param_groups", ()))
    return optimizer if fused and getattr(optimizer, "_step_supports_amp_scaling", False) else None
