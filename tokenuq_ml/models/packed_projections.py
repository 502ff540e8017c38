"""Products of a few rows with frozen weights on a CPU, several projections of the same input at a time.

oneDNN copies a weight into the layout of its kernels in each product, which at 32 rows takes a quarter of the time.
Here weights are stored in that layout (`torch.ops.mkldnn`, as PyTorch's inductor does when it freezes a model), and the
products of LoRA's small matrices are joined too. A group of projections is packed only if trial products have the same
bits as those of the layers themselves, which is so in bfloat16.

For torch 2.13. Shapes: N rows, I input features, O output features of all projections of a group, r ranks of all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenuq_ml.models.lora_linear import FusedLoraLinear
from tokenuq_ml.models.output_layer import has_hooks
from tokenuq_ml.out_of_memory import limits_of
from tokenuq_ml.seeding import probe_generator

MEMORY_SHARE = 0.125
"""Share of the process's memory that a second copy of the weights may take."""
NEEDED = ("_linear_pointwise", "_reorder_linear_weight")
"""Operators of PyTorch's own, which earlier releases lack."""
TRIAL_ROWS = (32, 5)
Factors = tuple[Tensor, Tensor, float]
"""Factors A and B of an adapter, and its scaling."""


class Projections:
    """Projections of the same input: one product, or a call of each layer.

    Args:
        layers: any modules that take `x_NI`.
        pack: whether to store their weights once more, if that changes no bit.
    """

    def __init__(self, layers: Sequence[nn.Module], pack: bool):
        self._layers = layers
        packed = _Packed.of(layers) if pack else None
        self._packed = packed if packed is not None and self._is_exact(packed) else None

    def packs(self, x_NI: Tensor) -> bool:
        """Return whether the projections of `x_NI` are one product."""
        return self._packed is not None and x_NI.dtype == self._packed.dtype

    def __call__(self, x_NI: Tensor) -> Sequence[Tensor]:
        """Return the output of each projection."""
        if self._packed is None or not self.packs(x_NI):
            return [layer(x_NI) for layer in self._layers]
        return self._packed(x_NI)

    @torch.no_grad()
    def _is_exact(self, packed: "_Packed") -> bool:
        for rows in TRIAL_ROWS:
            x_NI = torch.randn(rows, packed.features, generator=probe_generator()).to(packed.dtype)
            pairs = zip(packed(x_NI), (layer(x_NI) for layer in self._layers), strict=True)
            if not all(torch.equal(got_NO, own_NO) for got_NO, own_NO in pairs):
                return False
        return True


class _Packed:
    """The weights of several linear layers, and of their LoRA adapter, in the layout of oneDNN's kernels."""

    def __init__(self, bases: Sequence[nn.Linear], factors: Sequence[Factors | None]):
        self.features, self.dtype = bases[0].in_features, bases[0].weight.dtype
        self._sizes = [base.out_features for base in bases]
        self._weight = _pack(torch.cat([base.weight for base in bases]))
        biases = [base.bias for base in bases if base.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        adapted = [(base, *found) for base, found in zip(bases, factors, strict=True) if found is not None]
        self._scaling: float | None = adapted[0][3] if adapted else None
        if adapted:
            self._a = _pack(torch.cat([a_rI.to(self.dtype) for _, a_rI, _, _ in adapted]))
            self._b = _pack(_block_diagonal(bases, factors).to(self.dtype))

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> "_Packed | None":
        """Return the packed weights of linear layers; None if a layer is something else, or has hooks."""
        parts = [_parts(layer) for layer in layers]
        if not all(hasattr(torch.ops.mkldnn, name) for name in NEEDED) or any(part is None for part in parts):
            return None
        bases, factors = [part[0] for part in parts if part], [part[1] for part in parts if part]
        kinds = {(base.in_features, base.weight.dtype, base.weight.device.type, base.bias is None) for base in bases}
        scalings = {found[2] for found in factors if found is not None}
        if len(kinds) > 1 or len(scalings) > 1 or bases[0].weight.device.type != "cpu":
            return None
        # In float32, MKL's own kernels add in another order.
        return cls(bases, factors) if bases[0].weight.dtype == torch.bfloat16 else None

    def __call__(self, x_NI: Tensor) -> Sequence[Tensor]:
        y_NO = _product(x_NI, self._weight, self._bias)
        if self._scaling is not None:
            t_Nr = _product(x_NI, self._a).mul_(self._scaling)
            y_NO = torch.ops.mkldnn._linear_pointwise.binary(t_Nr, y_NO, self._b, None, "add")
        return y_NO.split(self._sizes, -1)


def _parts(layer: nn.Module) -> tuple[nn.Linear, Factors | None] | None:
    """Return a linear layer, with the factors and the scaling of its adapter; None if it computes something else."""
    if has_hooks(layer) or "forward" in vars(layer):
        return None
    if isinstance(layer, FusedLoraLinear):
        base, factors = layer.base_layer, layer.factors()
        plain = layer.disable_adapters and not layer.merged
        if (factors is None and not plain) or has_hooks(base) or "forward" in vars(base):
            return None
        layer = base
    else:
        factors = None
    return (layer, factors) if type(layer) is nn.Linear else None


def _block_diagonal(bases: Sequence[nn.Linear], factors: Sequence[Factors | None]) -> Tensor:
    """Return the matrix from the ranks of all adapters to the outputs of all layers, `[O, r]`."""
    blocks = [
        base.weight.new_zeros(base.out_features, 0) if found is None else found[1]
        for base, found in zip(bases, factors, strict=True)
    ]
    return torch.block_diag(*blocks)


def _pack(weight_OI: Tensor) -> Tensor:
    # The number of rows chooses the layout; products of any number may use it.
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), TRIAL_ROWS[0])


def _product(x_NI: Tensor, packed: Tensor, bias_O: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_NI, packed, bias_O, "none", [], "")


def fits_twice(model: nn.Module) -> bool:
    """Return whether a second copy of the model's weights takes a small share of the process's memory."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return size <= MEMORY_SHARE * limits_of()[0].size
