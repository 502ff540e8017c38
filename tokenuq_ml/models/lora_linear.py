"""LoRA's linear layer as one operation: `y = x W^T + s * dropout(x) A^T B^T`, with W frozen.

PEFT composes the layer of six operations. Several of them pass over all activations to scale or add them, which on a
CPU takes as long as the products. Here scales are folded into the small matrices and sums into the products, and the
backward pass recomputes the dropped input from its mask. The stored form of an adapter is PEFT's. GPT-2's `Conv1D` is
supported too.

Shapes: N rows (B sequences of T positions), I input features, O output features, r rank.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tokenuq_ml.models.lora_dropout import NOTHING_DROPPED, BitMaskDropout
from tokenuq_ml.patches import change_class


class _LoraProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_NI, weight_OI, bias_O, a_rI, b_Or, scaling, dropout):
        mask = dropout.draw(x_NI) if dropout is not None else NOTHING_DROPPED
        a_rI_scaled, b_Or_scaled = scaled(a_rI, mask.restore, x_NI.dtype), scaled(b_Or, scaling, x_NI.dtype)
        t_Nr = mask.apply(x_NI) @ a_rI_scaled.T
        y_NO = x_NI @ weight_OI.T
        y_NO.addmm_(t_Nr, b_Or_scaled.T)
        if bias_O is not None:
            y_NO += bias_O
        ctx.save_for_backward(x_NI, weight_OI, mask.kept, t_Nr, a_rI_scaled, b_Or_scaled)
        ctx.mask, ctx.scaling, ctx.dtypes = mask._replace(kept=None), scaling, (a_rI.dtype, b_Or.dtype)
        return y_NO

    @staticmethod
    def backward(ctx, grad_NO):
        x_NI, weight_OI, kept_NI, t_Nr, a_rI_scaled, b_Or_scaled = ctx.saved_tensors
        mask = ctx.mask._replace(kept=kept_NI)
        grad_Nr = grad_NO @ b_Or_scaled
        grad_b = scaled(grad_NO.T @ t_Nr, ctx.scaling, ctx.dtypes[1])
        grad_a = scaled(grad_Nr.T @ mask.apply(x_NI), mask.restore, ctx.dtypes[0])
        grad_NI = None
        if ctx.needs_input_grad[0]:
            grad_NI = grad_NO @ weight_OI
            if mask.drops:
                mask.add_to(grad_NI, grad_Nr @ a_rI_scaled)
            else:
                grad_NI.addmm_(grad_Nr, a_rI_scaled)
        return grad_NI, None, None, grad_a, grad_b, None, None


def scaled(x: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """Return `factor * x` in another dtype, computed in the wider of both, in one launch.

    A layer's matrices are small, so that on a GPU the launches are what their scaling costs.
    """
    if x.dtype == dtype:
        return x * factor
    if x.dtype.itemsize < dtype.itemsize:
        return x * _vector(factor, dtype, x.device)
    return torch.mul(x, factor, out=torch.empty(x.shape, dtype=dtype, device=x.device))


@functools.cache
def _vector(factor: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the factor as a vector, whose dtype decides that of a product; a scalar's does not."""
    return torch.tensor([factor], dtype=dtype, device=device)


def _weight(layer: nn.Linear | Conv1D) -> Tensor:
    """Return `weight_OI`; GPT-2's layers store it transposed."""
    return layer.weight.T if type(layer) is Conv1D else layer.weight


def _linear(layer: nn.Linear | Conv1D, x_NI: Tensor, onto: Tensor | None = None) -> Tensor:
    """Return `onto + layer(x)`, as one operation where dtypes allow it."""
    if onto is None or layer.bias is not None or not onto.dtype == x_NI.dtype == layer.weight.dtype:
        y_NO = nn.functional.linear(x_NI, _weight(layer), layer.bias)
        return y_NO if onto is None else onto.view_as(y_NO) + y_NO
    return torch.addmm(onto.view(len(x_NI), -1), x_NI, _weight(layer).T)


def add_projection(residual: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
    """Return `residual + layer(x)` as a new tensor, summed within the product of a plain or a fused layer."""
    if isinstance(layer, FusedLoraLinear):
        if not layer.disable_adapters or layer.merged:
            return layer(x, onto=residual)
        layer = layer.base_layer
    if type(layer) is not nn.Linear:
        return residual + layer(x)
    return _linear(layer, x.view(-1, x.shape[-1]), residual).view_as(residual)


class FusedLoraLinear(LoraLinear):
    """PEFT's layer with a fused forward pass for plain LoRA on a frozen layer; other cases use PEFT's."""

    def forward(self, x: Tensor, *args: Any, onto: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return the layer's output for `x`, plus `onto`; the sum is within the product if there is no gradient."""
        name, dtype = self._fused_adapter(args, kwargs), self._compute_dtype(x)
        if name is None or self.base_layer.weight.dtype != dtype:
            y = super().forward(x, *args, **kwargs)
            return y if onto is None else onto + y
        dropout, x = self.lora_dropout[name], x.to(dtype)
        drops = isinstance(dropout, BitMaskDropout) and dropout.active
        with torch.autocast(x.device.type, enabled=False):
            if torch.is_grad_enabled() or drops:
                y_NO = self._with_gradient(name, x, dropout if drops else None)
                y_NO = y_NO if onto is None else onto.view_as(y_NO) + y_NO
            else:
                y_NO = self._without_gradient(name, x, onto)
        return y_NO.view(*x.shape[:-1], -1)

    def _with_gradient(self, name: str, x: Tensor, dropout: BitMaskDropout | None) -> Tensor:
        base, x_NI = self.base_layer, x.reshape(-1, x.shape[-1])
        a_rI, b_Or = self.lora_A[name].weight, self.lora_B[name].weight
        return _LoraProduct.apply(x_NI, _weight(base), base.bias, a_rI, b_Or, self.scaling[name], dropout)

    def _without_gradient(self, name: str, x: Tensor, onto: Tensor | None) -> Tensor:
        x_NI, dropout, scaling = x.reshape(-1, x.shape[-1]), self.lora_dropout[name], self.scaling[name]
        a_rI, b_Or = self.lora_A[name].weight, self.lora_B[name].weight
        y_NO = _linear(self.base_layer, x_NI, onto)
        if hasattr(dropout, "project"):
            t_Nr = dropout.project(x_NI.view(x.shape), a_rI, scaling).reshape(len(x_NI), -1)
        else:
            t_Nr = (x_NI @ a_rI.to(x.dtype).T).mul_(scaling)
        return y_NO.addmm_(t_Nr, b_Or.to(x.dtype).T)

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """Return A, B and the scaling of the one adapter that is applied; None if it drops, or there is another way."""
        name = self._fused_adapter((), {})
        if name is None:
            return None
        dropout = self.lora_dropout[name]
        drops = dropout.active if isinstance(dropout, BitMaskDropout) else not isinstance(dropout, nn.Identity)
        return None if drops else (self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])

    def _fused_adapter(self, args: tuple, kwargs: dict) -> str | None:
        """Return the name of the adapter to apply; None if PEFT's forward pass has to run."""
        base = self.base_layer
        active = [name for name in self.active_adapters if name in self.lora_A]
        known = type(base) in (nn.Linear, Conv1D) and self.fan_in_fan_out == (type(base) is Conv1D)
        if args or kwargs or self.disable_adapters or self.merged or len(active) != 1 or not known:
            return None
        name = active[0]
        trains_base = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
        plain = name not in self.lora_variant and not self.lora_bias[name]
        dropout = self.lora_dropout[name]
        plain &= isinstance(dropout, (BitMaskDropout, nn.Identity)) or (
            hasattr(dropout, "project") and not torch.is_grad_enabled()
        )
        return name if plain and not trains_base else None

    @staticmethod
    def _compute_dtype(x: Tensor) -> torch.dtype:
        kind = x.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def use_fused_lora(model: PeftModel) -> PeftModel:
    """Give every LoRA linear layer the fused forward pass, in place."""
    for module in model.modules():
        if type(module) is LoraLinear:
            change_class(module, FusedLoraLinear)
    return model


@contextmanager
def composed_lora(model: nn.Module) -> Iterator[None]:
    """Give every fused layer PEFT's forward pass and PyTorch's dropout inside the context, for torch.compile."""
    layers = [module for module in model.modules() if type(module) is FusedLoraLinear]
    dropouts = {id(layer): dict(layer.lora_dropout.items()) for layer in layers}
    try:
        for layer in layers:
            change_class(layer, LoraLinear)
            for name, dropout in dropouts[id(layer)].items():
                if isinstance(dropout, BitMaskDropout):
                    layer.lora_dropout[name] = nn.Dropout(dropout.p).train(dropout.training)
        yield
    finally:
        for layer in layers:
            change_class(layer, FusedLoraLinear)
            for name, dropout in dropouts[id(layer)].items():
                layer.lora_dropout[name] = dropout.train(layer.training)
