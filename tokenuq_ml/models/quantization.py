"""Base models whose linear layers are quantised by bitsandbytes, and exact products with their weights.

Loading has the effects of PEFT's `prepare_model_for_kbit_training`: everything is frozen, and norms stay in float32.
Embeddings and output layer, which that function also makes float32, get the dtype of the computation: the head's logits
are most of a step's memory. Adapters are trained on top (QLoRA, arXiv 2305.14314).

Weights are always quantised from float32, so that teacher and students have the same integers in every precision.

On a CPU, bitsandbytes (0.50) computes something else in eval mode than in training: it packs 4-bit weights with scales
that are rounded to bfloat16, and quantises the inputs of 8-bit layers. Both are switched off, so that the teacher's
distributions and the student's are of one model.

Shapes: I input features, O output features.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from tokenuq_ml.errors import InputError
from tokenuq_ml.models.flags import FOUR_BIT
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.patches import change_class, replaced_attribute, replaced_forward
from tokenuq_ml.system_errors import is_system_error

if TYPE_CHECKING:
    from tokenuq_ml.config.base_keys import Quantization

EIGHT_BIT = "Linear8bitLt"
"""Class of bitsandbytes."""
PACKAGE = "bitsandbytes"
TRIAL_TOKENS = 4
"""Tokens of the pass that shows whether a quantised model runs."""


def check_quantization(quantization: Quantization, device: str) -> None:
    """Check that this machine can quantise.

    Raises:
        InputError: bitsandbytes is missing, or does not support the device.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise InputError(
            f"quantization {quantization} needs the package {PACKAGE}, which is not installed; "
            "pip install 'tokenuq[quantized]'"
        )
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(
            f"quantization {quantization} runs on CUDA and on CPU, and this machine computes on {device}; remove "
            "'quantization' from the study"
        )


def load_quantised(
    folder: str | Path, numerics: Numerics, quantization: Quantization, **options: Any
) -> PreTrainedModel:
    """Load a base model with quantised linear layers, frozen and in eval mode.

    The output layer is not quantised, and neither are embeddings and norms.

    Args:
        folder: folder of the model.
        numerics: device, and dtype of the computation.
        quantization: nf4 with quantised scales, or int8 of both weights and (on CUDA) inputs.
        **options: further arguments of `from_pretrained`.

    Raises:
        InputError: see `check_quantization`; or the model has no layer that is quantised, or cannot be quantised.
    """
    check_quantization(quantization, numerics.device)
    # It warns of each cast of a layer's input.
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    config = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=numerics.dtype,
        )
        if quantization == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=config, device_map={"": _place(numerics.device)}, **options
    )
    layers = list(quantised_layers(model))
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no linear layer that {PACKAGE} quantises; remove 'quantization' from the study"
        )
    _check_experts(model, quantization)
    model.requires_grad_(False)
    _narrow_all_but_norms(model, numerics.dtype)
    for layer in layers:
        _compute_alike(layer, numerics.dtype)
    _check_pass(model.eval(), quantization)
    return model


def _place(device: str) -> int | str:
    """Return the device as accelerate compares it with that of a training: a GPU by its number."""
    kind, _, number = device.partition(":")
    return (int(number) if number else torch.cuda.current_device()) if kind == "cuda" else device


def _check_experts(model: PreTrainedModel, quantization: Quantization) -> None:
    """Refuse experts that are fused parameters: most of a mixture's weights, which would stay as they are."""
    for path, module in model.named_modules():
        fused = [name for name, parameter in module.named_parameters(recurse=False) if parameter.dim() > 2]
        if fused and not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise InputError(
                f"{PACKAGE} quantises linear layers, and {path}.{fused[0]} of {type(model).__name__} is one tensor of "
                f"several; remove 'quantization' {quantization} from the study"
            )


@torch.no_grad()
def _check_pass(model: PreTrainedModel, quantization: Quantization) -> None:
    """Refuse models that read the weight of a layer themselves (Mamba), which is an array of integers now."""
    try:
        model(input_ids=torch.zeros((1, TRIAL_TOKENS), dtype=torch.long, device=model.device), use_cache=False)
    except (RuntimeError, TypeError, ValueError) as error:
        if is_system_error(error):
            raise
        raise InputError(
            f"{type(model).__name__} has no forward pass with layers that {PACKAGE} quantises ({error}); remove "
            f"'quantization' {quantization} from the study"
        ) from error


def _narrow_all_but_norms(model: nn.Module, dtype: torch.dtype) -> None:
    """Give everything but norms and quantised layers a dtype; norms give the dtype of their input, as before."""
    for module in list(model.modules()):
        own = list(module.parameters(recurse=False))
        if not own or is_quantised_layer(module) or dtype == torch.float32:
            continue
        if _is_norm(module):
            change_class(module, _class_in_own_dtype(type(module)))
            continue
        for parameter in own:
            parameter.data = parameter.data.to(dtype)


def _is_norm(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and own.keys() <= {"weight", "bias"} and own["weight"].dim() == 1


@cache
def _class_in_own_dtype(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class of norms that compute in the dtype of their weight, and give the dtype of their input."""

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return kind.forward(self, x.to(self.weight.dtype), *args, **kwargs).to(x.dtype)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def quantised_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of bitsandbytes."""
    return (module for module in model.modules() if is_quantised_layer(module))


def is_quantised_layer(module: nn.Module) -> bool:
    """Return whether a module is a linear layer of bitsandbytes, and not PEFT's wrapping of one."""
    kinds = type(module).__mro__
    return any(kind.__name__ in (*FOUR_BIT, EIGHT_BIT) and kind.__module__.startswith(PACKAGE) for kind in kinds)


def is_packed(layer: nn.Module) -> bool:
    """Return whether bitsandbytes has packed the weights of a 4-bit layer for inference on a CPU."""
    return bool(getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False))


def _compute_alike(layer: nn.Module, dtype: torch.dtype) -> None:
    """Let a layer compute the same in eval mode as in training."""
    state = getattr(layer.weight, "quant_state", None)
    if state is not None:
        # Of the dequantised weights of the backward pass.
        state.dtype = dtype
        layer.support_avx512bf16_for_cpu = False
    elif layer.weight.device.type == "cpu":
        change_class(layer, _dequantising_class(type(layer)))


@cache
def _dequantising_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return bitsandbytes' 8-bit layer with the forward pass that it has in training, which rounds no input."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        mode, self.training = self.training, True
        try:
            return kind.forward(self, x)
        finally:
            self.training = mode

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


@contextmanager
def exact_products(model: nn.Module) -> Iterator[None]:
    """Multiply the dequantised weights in the dtype of the inputs inside the context: float32, or float64.

    For passes whose differences are smaller than the rounding of bfloat16 or of 8-bit inputs.
    """
    with ExitStack() as stack:
        for layer in quantised_layers(model):
            stack.enter_context(replaced_forward(layer, _exact_forward))
            state = getattr(layer.weight, "quant_state", None)
            if state is not None:
                # DoRA dequantises weights too.
                stack.enter_context(replaced_attribute(state, "dtype", torch.float32))
        yield


def _exact_forward(self: nn.Module, x: Tensor) -> Tensor:
    bias = None if self.bias is None else self.bias.to(x.dtype)
    return nn.functional.linear(x, dequantised_weight(self).to(x.dtype), bias)


def dequantised_weight(layer: nn.Module) -> Tensor:
    """Return `weight_OI` in float32.

    Not by PEFT's `dequantize_module_weight`, which gives the dtype of the computation, and moves 8-bit weights.
    """
    import bitsandbytes.functional as functional

    weight = layer.weight
    with torch.no_grad():
        state = getattr(weight, "quant_state", None)
        if state is not None:
            with replaced_attribute(state, "dtype", torch.float32):
                return functional.dequantize_4bit(weight.data, state)
        scales = layer.state.SCB if layer.state.SCB is not None else weight.SCB
        return functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device))
