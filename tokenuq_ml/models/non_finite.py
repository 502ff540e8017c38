"""Find where a forward pass first has a number that is NaN or infinite.

Nothing here runs unless a loss was not finite: the pass is repeated with a hook on each module. PyTorch's anomaly mode
(`torch.autograd.set_detect_anomaly`) sees NaN in backward passes only, and has to be on from the start.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenuq_ml.models.output_layer import causal_lm


class _Found(Exception):
    """Ends the pass at the first module."""


@torch.no_grad()
def first_non_finite_module(model: PreTrainedModel | PeftModel, run: Callable[[], Any]) -> str | None:
    """Return the name and class of the first module whose output is not finite, and its weights that are not.

    Modules inside others come first: the layer that overflows is named, not the block around it.

    Args:
        model: with or without adapters.
        run: a forward pass of the model, up to the output layer.

    Returns:
        As in `model.layers.3.mlp.down_proj (Linear), whose weight has 1 of 4096 values that are not finite`; None if
        every output is finite.
    """
    found: list[str] = []

    def hook_of(name: str) -> Callable:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not all(is_finite(tensor) for tensor in _tensors(output)):
                found.append(f"{name} ({type(module).__name__}){_weights(module)}")
                raise _Found

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in _inner_modules(model)]
    try:
        run()
    except _Found:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def output_layer_name(model: PreTrainedModel | PeftModel) -> str:
    """Return the name and class of the output layer, and its weights that are not finite."""
    layer = model.get_output_embeddings()
    names = [f"{name} ({type(layer).__name__})" for name, module in model.named_modules() if module is layer]
    return f"{names[0]}{_weights(layer)}" if names and layer is not None else "the output layer"


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite; true for tensors without data, as offloaded weights are."""
    if tensor.is_meta or not tensor.is_floating_point():
        return True
    # PyTorch has no test for numbers of 8 bits.
    return bool(torch.isfinite(tensor.half() if tensor.element_size() == 1 else tensor).all())


def non_finite_weights(parameters: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of parameters with numbers that are not finite."""
    return [name for name, parameter in parameters if not is_finite(parameter.detach())]


def _inner_modules(model: PreTrainedModel | PeftModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules inside the language model except its output layer: a hook there would change the pass."""
    lm, outer = causal_lm(model), model.get_output_embeddings()
    inner = {id(module) for module in lm.modules()} - {id(lm), id(outer)}
    return ((name, module) for name, module in model.named_modules() if id(module) in inner)


def _weights(module: nn.Module) -> str:
    """Return a clause about the module's first parameter with a number that is not finite; empty if there is none."""
    for name, parameter in module.named_parameters():
        if not is_finite(parameter):
            bad = int((~torch.isfinite(parameter)).sum())
            return f", whose {name} has {bad} of {parameter.numel()} values that are not finite"
    return ""


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of floating-point numbers in a module's output."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
