"""LoRA dropout in training, drawn sixteen bits at a time.

On a CPU, PyTorch draws one Bernoulli variate per element, serially. LoRA drops the input of every linear layer, so
those draws take nearly half of a training step. Here each 64-bit draw gives four variates, and masks are applied as
bits, not by products. On a GPU with Triton no mask is stored: each use of it draws it from its seed. Monte-Carlo
dropout draws its masks by key instead (`keyed_masks.py`).
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tokenuq_ml.kernels.backend import backend_of
from tokenuq_ml.kernels.fused_dropout import drop_elements
from tokenuq_ml.seeding import part_bits

_LEVELS = 2**15
"""Equally likely values of a draw."""
_PART_DRAWS = 2**17
"""64-bit draws per part of a mask: a part stays in a core's cache."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type by bytes per element."""


def _draw_mask(elements: int, dropped: int, device: torch.device) -> Tensor:
    """Return int16 `[elements]`, all ones where kept and 0 where dropped (`dropped` of `_LEVELS` values).

    The global generator decides all draws, so that restoring its state repeats the masks. On a CPU it seeds one faster
    generator (SFC64) per part of the mask, so that threads share the work; the number of threads changes nothing.
    """
    draws = -(-elements // 4)
    if device.type != "cpu":
        words = torch.empty(draws, dtype=torch.int64, device=device).random_(-(2**63), None).view(torch.int16)
        words = torch.sub(dropped - 1, words.bitwise_and_(_LEVELS - 1), out=words)
        return words.bitwise_right_shift_(15)[:elements]
    seed, mask = _draw_seed(), np.empty(4 * draws, np.int16)

    def fill(number: int) -> None:
        part = mask[number * 4 * _PART_DRAWS : (number + 1) * 4 * _PART_DRAWS]
        words = part_bits(seed, number, len(part) // 4).view(np.int16)
        np.bitwise_and(words, _LEVELS - 1, out=words)
        # The last dropped level minus the draw: negative where kept, and the shift spreads the sign over the word.
        np.subtract(np.int16(dropped - 1), words, out=words)
        np.right_shift(words, 15, out=part)

    parts = range(-(-draws // _PART_DRAWS))
    # numpy releases the interpreter's lock in each of these operations.
    list(_threads().map(fill, parts) if len(parts) > 1 else map(fill, parts))
    return torch.from_numpy(mask)[:elements]


def _draw_seed() -> int:
    """Draw a seed on the host, so that a GPU need not be waited for."""
    return int(torch.randint(2**63 - 1, (), device="cpu"))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="dropout")


def apply_mask(x: Tensor, kept: Tensor) -> Tensor:
    """Return `x` where `kept` is all ones, else 0.

    Operates on bits, which costs a fraction of a product: all ones stay all ones in an integer of any width.

    Args:
        x: Floating point, 16, 32 or 64 bits.
        kept: int16, all ones or 0, of a shape that broadcasts to that of `x`.
    """
    return (x.contiguous().view(_INTEGERS[x.element_size()]) & kept).view(x.dtype)


class Mask(NamedTuple):
    """Which elements of a tensor are kept: as bits, or as the seed from which a kernel draws them at each use."""

    kept: Tensor | None
    """int16, all ones where kept, else 0; None: drawn from the seed."""
    seed: int
    dropped: int
    """Of `_LEVELS` equally likely values."""

    @property
    def drops(self) -> bool:
        """Whether anything is dropped."""
        return self.dropped > 0

    @property
    def restore(self) -> float:
        """The factor that preserves the mean."""
        return _LEVELS / (_LEVELS - self.dropped)

    def apply(self, x: Tensor) -> Tensor:
        """Return `x` where it is kept, else 0, not scaled; `x` itself if nothing is dropped."""
        if not self.drops:
            return x
        return drop_elements(x, self.seed, self.dropped) if self.kept is None else apply_mask(x, self.kept)

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """Add the kept elements of `x` to `total`, in place, and return it."""
        if self.kept is None:
            return drop_elements(x, self.seed, self.dropped, onto=total)
        return total.add_(apply_mask(x, self.kept))


NOTHING_DROPPED = Mask(None, 0, 0)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, mask: Mask) -> Tensor:
        ctx.save_for_backward(mask.kept)
        ctx.mask = mask._replace(kept=None)
        return mask.apply(x).mul_(mask.restore)

    @staticmethod
    def backward(ctx, grad: Tensor):
        mask = ctx.mask._replace(kept=ctx.saved_tensors[0])
        return mask.apply(grad).mul_(mask.restore), None


class BitMaskDropout(nn.Module):
    """Dropout like `nn.Dropout(p)`: independent per element, scaled so that the mean is preserved.

    Drops at a rate within 2^-16 of `p`. The global generator decides the draws, so that the generator state in a
    checkpoint covers them.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self._dropped = round(p * _LEVELS)

    @property
    def active(self) -> bool:
        """Whether a forward pass drops anything now."""
        return self.training and self._dropped > 0

    def draw(self, x: Tensor) -> Mask:
        """Return a mask for `x`."""
        if backend_of(x).is_fused:
            return Mask(None, _draw_seed(), self._dropped)
        return Mask(_draw_mask(x.numel(), self._dropped, x.device).view(x.shape), 0, self._dropped)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with elements dropped and the others scaled; in eval mode the input itself."""
        return _Drop.apply(x, self.draw(x)) if self.active else x

    def extra_repr(self) -> str:
        """Return the rate, for `repr`."""
        return f"p={self.p}"


def use_bit_mask_dropout(model: PeftModel) -> PeftModel:
    """Replace the dropouts of every adapter, in place. The stored form of the adapter does not change.

    Also skips LoRA's cast of its inputs to float32, which autocast would undo at the next product.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
            for name, dropout in module.lora_dropout.items():
                if isinstance(dropout, nn.Dropout):
                    module.lora_dropout[name] = BitMaskDropout(dropout.p).train(dropout.training)
    return model
