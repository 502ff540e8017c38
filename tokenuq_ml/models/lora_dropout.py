"""LoRA's dropout in training, drawn sixteen bits at a time.

PyTorch draws one Bernoulli variate an element on a CPU, serially; LoRA drops the input of
every linear layer, and those draws come to take nearly half of a training step. Here each
64-bit draw gives four variates, and masks are applied as bits, not by products. Knows
nothing of Monte-Carlo sampling (`mc_dropout.py`).
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tokenuq_ml.seeding import part_bits

_LEVELS = 2**15
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _draw_mask(elements: int, dropped: int, device: torch.device) -> Tensor:
    """int16, all ones where kept and 0 where not: `dropped` of 2^15 cases, decided by the global generator.

    On a CPU that generator only seeds faster ones (SFC64), one a part, so that threads share the work and each
    part stays in a core's cache; it still decides everything, so that restoring its state repeats the masks,
    with any number of threads.
    """
    draws = -(-elements // 4)
    if device.type != "cpu":
        words = torch.empty(draws, dtype=torch.int64, device=device).random_(-(2**63), None).view(torch.int16)
        words = torch.sub(dropped - 1, words.bitwise_and_(_LEVELS - 1), out=words)
        return words.bitwise_right_shift_(15)[:elements]
    seed, mask = int(torch.randint(2**63 - 1, ())), np.empty(4 * draws, np.int16)

    def draw(number: int) -> None:
        part = mask[number * 4 * _PART_DRAWS : (number + 1) * 4 * _PART_DRAWS]
        words = part_bits(seed, number, len(part) // 4).view(np.int16)
        np.bitwise_and(words, _LEVELS - 1, out=words)
        # Taken from the last level that is dropped: negative where kept, and the sign fills the word.
        np.subtract(np.int16(dropped - 1), words, out=words)
        np.right_shift(words, 15, out=part)

    parts = range(-(-draws // _PART_DRAWS))
    # numpy lets go of the interpreter's lock in each of these.
    list(_threads().map(draw, parts) if len(parts) > 1 else map(draw, parts))
    return torch.from_numpy(mask)[:elements]


_PART_DRAWS = 2**17


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="dropout")


def apply_mask(x: Tensor, kept: Tensor) -> Tensor:
    """`x` where `kept` (int16, of a shape that broadcasts to `x`'s) is all ones, else 0.

    By bits, which cost a fraction of a product: ones extend to ones in an integer of any width.
    """
    return (x.contiguous().view(_INTEGERS[x.element_size()]) & kept).view(x.dtype)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return apply_mask(x, kept).mul_(scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (kept,) = ctx.saved_tensors
        return apply_mask(grad, kept).mul_(ctx.scale), None, None


class BitMaskDropout(nn.Module):
    """As `nn.Dropout(p)`: independent for every element, scaled so that the mean stays.

    `p` is met to within 2^-16. Draws are decided by the global generator, so that a
    checkpoint's generator state covers them.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self._dropped = round(p * _LEVELS)

    @property
    def active(self) -> bool:
        return self.training and self._dropped > 0

    def draw(self, x: Tensor) -> tuple[Tensor, float]:
        """A mask for `x` (int16, all ones where kept, else 0), and the factor that keeps the mean."""
        kept = _draw_mask(x.numel(), self._dropped, x.device).view(x.shape)
        return kept, _LEVELS / (_LEVELS - self._dropped)

    def forward(self, x: Tensor) -> Tensor:
        return _Drop.apply(x, *self.draw(x)) if self.active else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


def use_bit_mask_dropout(model: PeftModel) -> PeftModel:
    """Replaces the dropouts of every adapter, in place; what is stored of the adapter does not change.

    Also spares LoRA the cast of its inputs to float32, which autocast would undo at the
    next product.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
            for name, dropout in module.lora_dropout.items():
                if isinstance(dropout, nn.Dropout):
                    module.lora_dropout[name] = BitMaskDropout(dropout.p)
    return model
