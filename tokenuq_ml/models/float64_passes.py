"""Forward passes in float64 of a model that stays in memory as it is: what rounding is measured against.

Each module's weights are widened when it runs and put back when it is done, so that a model needs the memory of its
largest module more, not three times its own. Modelling code that asks for float32 (norms, softmax, rotary angles) gets
float64. Slow, for small samples; no gradient. Does not know what is computed from the passes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def float64_passes(model: nn.Module) -> Iterator[None]:
    """Inside, forward passes of `model` in the calling thread are float64.

    Raises:
        RuntimeError: the device has no float64 (MPS): move the model to the CPU first.
    """
    with ExitStack() as stack:
        for module, tensors in _units(model):
            widened = _Widened(tensors)
            stack.callback(module.register_forward_pre_hook(widened.widen).remove)
            # Also after an error, so that no weight stays wide.
            stack.callback(module.register_forward_hook(widened.put_back, always_call=True).remove)
        stack.enter_context(torch.autocast(next(model.parameters()).device.type, enabled=False))
        stack.enter_context(_Float64InPlaceOfFloat32())
        yield


def _units(model: nn.Module) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """Each module that owns tensors, with those; a LoRA layer with all beneath it, which it may read by itself."""
    beneath: set[int] = set()
    for module in model.modules():
        if id(module) in beneath:
            continue
        recurse = isinstance(module, LoraLayer)
        if recurse:
            beneath.update(map(id, module.modules()))
        tensors = [*module.parameters(recurse), *module.buffers(recurse)]
        if tensors := [tensor for tensor in tensors if tensor.is_floating_point()]:
            yield module, tensors


class _Widened:
    def __init__(self, tensors: list[Tensor]):
        self.tensors, self.before = tensors, []

    def widen(self, *_) -> None:
        self.before = [tensor.data for tensor in self.tensors]
        for tensor in self.tensors:
            tensor.data = tensor.data.double()

    def put_back(self, *_) -> None:
        for tensor, before in zip(self.tensors, self.before, strict=True):
            tensor.data = before


class _Float64InPlaceOfFloat32(TorchFunctionMode):
    """Whoever asks for float32, by a dtype or by `float()`, gets float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.float:
            function = Tensor.double
        args = tuple(torch.float64 if argument is torch.float32 else argument for argument in args)
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return function(*args, **kwargs)
