"""LoRA's dropout in training, drawn sixteen bits at a time.

PyTorch draws one Bernoulli variate an element on a CPU, serially; LoRA drops the input of
every linear layer, and those draws come to take nearly half of a training step. Here each
64-bit draw gives four variates, and masks are applied as bits, not by products. Knows
nothing of Monte-Carlo sampling (`mc_dropout.py`).
"""

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

_LEVELS = 2**15


def _draw_words(elements: int, device: torch.device) -> Tensor:
    """Sixteen random bits an element, as int16, decided by the global generator.

    On a CPU that generator only seeds a faster one (SFC64); it still decides everything, so
    that restoring its state repeats the masks.
    """
    draws = -(-elements // 4)
    if device.type == "cpu":
        seed = int(torch.randint(2**63 - 1, ()))
        raw = torch.from_numpy(np.random.SFC64(seed).random_raw(draws).view(np.int16))
    else:
        raw = torch.empty(draws, dtype=torch.int64, device=device).random_(-(2**63), None).view(torch.int16)
    return raw[:elements]


def _apply(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    """`x * scale` where `kept` is all ones, 0 where it is 0."""
    if x.element_size() == 2:
        return (x.contiguous().view(torch.int16) & kept).view(x.dtype).mul_(scale)
    return torch.where(kept != 0, x, 0.0).mul_(scale)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _apply(x, kept, scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (kept,) = ctx.saved_tensors
        return _apply(grad, kept, ctx.scale), None, None


class WordDropout(nn.Module):
    """As `nn.Dropout(p)`: independent for every element, scaled so that the mean stays.

    `p` is met to within 2^-16. Draws are decided by the global generator, so that a
    checkpoint's generator state covers them.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self._dropped = round(p * _LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self._dropped == 0:
            return x
        words = _draw_words(x.numel(), x.device)
        # Fifteen bits, less the threshold: negative where dropped, and the sign fills the word.
        kept = words.bitwise_and_(_LEVELS - 1).sub_(self._dropped).bitwise_right_shift_(15).bitwise_not_()
        return _Drop.apply(x, kept.view(x.shape), _LEVELS / (_LEVELS - self._dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def use_word_dropout(model: PeftModel) -> PeftModel:
    """Replaces the dropouts of every adapter, in place; what is stored of the adapter does not change.

    Also spares LoRA the cast of its inputs to float32, which autocast would undo at the
    next product.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
            for name, dropout in module.lora_dropout.items():
                if isinstance(dropout, nn.Dropout):
                    module.lora_dropout[name] = WordDropout(dropout.p)
    return model
