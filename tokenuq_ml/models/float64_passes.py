"""Forward passes in float64 of a model that stays in its own dtype: the reference for measuring rounding errors.

Widens the weights of each layer while it runs and restores them afterwards, so that a model needs additional memory
for its largest layer only, not for a complete copy. Modelling code that asks for float32 (norms, softmax, rotary
angles) gets float64. Slow, for small samples; no gradient.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from tokenuq_ml.models.quantization import exact_products
from tokenuq_ml.models.sharding import around_gathering


@contextmanager
def float64_passes(model: nn.Module) -> Iterator[None]:
    """Compute forward passes of `model` in the calling thread in float64 inside the context.

    Raises:
        RuntimeError: The device has no float64 (MPS); move the model to the CPU first.
    """
    asked = Float64ForFloat32()
    with ExitStack() as stack:
        for module, recurse in _units(model):
            widening = _Widening(module, recurse)
            if all(tensor.dim() < 2 for tensor in _tensors(module, recurse)):
                # Small, and the dtype of a final norm may be read before it runs.
                widening.widen()
                stack.callback(widening.restore)
                continue
            stack.callback(module.register_forward_pre_hook(widening.widen).remove)
            # Also after an error, so that no weight stays wide; and before FSDP frees the gathered weights.
            stack.callback(module.register_forward_hook(widening.restore, prepend=True, always_call=True).remove)
        # FSDP gathers weights in the dtype that they have.
        stack.enter_context(around_gathering(model, asked.pause, asked.resume))
        stack.enter_context(torch.autocast(next(model.parameters()).device.type, enabled=False))
        stack.enter_context(asked)
        stack.enter_context(_eager_experts(model))
        stack.enter_context(exact_products(model))
        yield


@contextmanager
def _eager_experts(model: nn.Module) -> Iterator[None]:
    """Compute a mixture of experts one expert at a time: PyTorch's grouped products take no float64."""
    if not (isinstance(model, PreTrainedModel) and hasattr(model, "set_experts_implementation")):
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _units(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Yield each module that owns tensors, and whether it comes with those of all modules inside it.

    A decoder layer and a LoRA layer come with the tensors of all modules inside them, because some of their code reads
    these itself: kernels of state-space layers, and code that casts to the dtype of the next projection.
    """
    inside: set[int] = set()
    layers = {id(layer) for lists in model.modules() if isinstance(lists, nn.ModuleList) for layer in lists}
    for module in model.modules():
        if id(module) in inside:
            continue
        recurse = isinstance(module, LoraLayer) or id(module) in layers
        if recurse:
            inside.update(map(id, module.modules()))
        if _tensors(module, recurse):
            yield module, recurse


def _tensors(module: nn.Module, recurse: bool) -> list[Tensor]:
    tensors = [*module.parameters(recurse), *module.buffers(recurse)]
    return [tensor for tensor in tensors if tensor.is_floating_point()]


class _Widening:
    """Hooks that widen the tensors of a module before it runs, and restore them afterwards.

    They are looked up at each pass: FSDP puts gathered weights in the place of a process's part.
    """

    def __init__(self, module: nn.Module, recurse: bool):
        self.module, self.recurse = module, recurse
        self.before: list[tuple[Tensor, Tensor]] = []

    def widen(self, *_) -> None:
        self.before = [(tensor, tensor.data) for tensor in _tensors(self.module, self.recurse)]
        for tensor, narrow in self.before:
            tensor.data = narrow.double()

    def restore(self, *_) -> None:
        for tensor, narrow in self.before:
            tensor.data = narrow
        self.before = []


BITSANDBYTES = "bitsandbytes"
"""The namespace of its operators."""


class Float64ForFloat32(TorchFunctionMode):
    """Give float64 to code that asks for float32, by a dtype or by `float()`, unless it is paused.

    Kernels that dequantise weights give float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pauses = 0

    def pause(self) -> None:
        """Change nothing until `resume`; pauses may be nested."""
        self._pauses += 1

    def resume(self) -> None:
        """End a pause."""
        self._pauses -= 1

    def __torch_function__(self, function, types, args=(), kwargs=None):
        # Its kernels have no float64, and would leave their output as it was allocated.
        if self._pauses or getattr(function, "namespace", None) == BITSANDBYTES:
            return function(*args, **(kwargs or {}))
        if function is Tensor.float:
            function = Tensor.double
        args = tuple(torch.float64 if argument is torch.float32 else argument for argument in args)
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return function(*args, **kwargs)
