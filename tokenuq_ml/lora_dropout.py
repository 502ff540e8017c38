"""LoRA's dropout in training, drawn sixteen bits at a time.

PyTorch draws one 32-bit Bernoulli variate an element on a CPU, serially; LoRA drops the input
of every linear layer, and those draws come to take nearly half of a training step. Four
sixteen-bit words out of each 64-bit draw give the same distribution, the rate to within
2^-17, at an eighth of the cost. Knows nothing of Monte-Carlo sampling (`mc_dropout.py`).
"""

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

_WORDS = 2**16


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (x * keep).mul_(scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (keep,) = ctx.saved_tensors
        return (grad * keep).mul_(ctx.scale), None, None


class WordDropout(nn.Module):
    """As `nn.Dropout(p)`: independent for every element, scaled so that the mean stays.

    Draws from the global generator, as `nn.Dropout` does, so that a checkpoint's generator
    state covers it. Keeps one byte an element for the backward pass.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self._dropped_words = round(p * _WORDS)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self._dropped_words == 0:
            return x
        elements = x.numel()
        draws = torch.empty(-(-elements // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        keep = (draws.view(torch.int16)[:elements] >= self._dropped_words - _WORDS // 2).view(x.shape)
        return _Drop.apply(x, keep, _WORDS / (_WORDS - self._dropped_words))

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
