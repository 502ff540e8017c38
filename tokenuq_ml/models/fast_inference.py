"""Faster forward passes for inference on a CPU: the same results in fewer passes over the activations.

Inside `fast_inference(model)`:
- causal attention runs block by block (`blocked_attention.py`) where that is faster than PyTorch's kernel,
- RMS norms scale rows without a float32 copy of the activations,
- decoder layers of the Llama kind rotate queries and keys where attention reads them, multiply the gate of their MLP
  in place, and add to the residual stream within the product.

A module is recognised by its class and structure. The first module of each class and structure is compared with its own
forward pass before any is replaced; those that differ keep their own, and so do modules in which a user's hook or
forward pass would not run. Calls that are not plain inference (with a gradient, a cache or a mask) also run the
module's own forward pass. Models with quantised layers keep all of theirs.

Shapes: B sequences, T positions, N = B * T rows, D hidden size, I width of the MLP, H heads, G key heads, R = H / G, F
features of a head.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenuq_ml.models import blocked_attention
from tokenuq_ml.models.forward import cached_dtypes
from tokenuq_ml.models.lora_linear import add_projection
from tokenuq_ml.models.output_layer import has_hooks
from tokenuq_ml.models.quantization import quantised_layers
from tokenuq_ml.models.row_cache import cache_in
from tokenuq_ml.models.sharding import class_of, gathered_around
from tokenuq_ml.patches import replaced_forward
from tokenuq_ml.seeding import probe_generator

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "GemmaDecoderLayer")
"""Norm, attention, sum, norm, gated MLP, sum; rotary embeddings over complete heads that rotate the first half of the
features with the second."""


@contextmanager
def fast_inference(model: PreTrainedModel) -> Iterator[None]:
    """Make forward passes of `model` on a CPU without a gradient faster inside the context.

    Restores all modules afterwards. Does nothing inside another such context.

    Args:
        model: The transformers model, not PEFT's wrapping of it (`causal_lm`).
    """
    with cached_dtypes(model), _fast_modules(model):
        yield


@contextmanager
def _fast_modules(model: PreTrainedModel) -> Iterator[None]:
    attention, is_inside = model.config._attn_implementation, blocked_attention.is_used_by(model)
    known = attention == blocked_attention.SDPA and model.dtype in (torch.float32, torch.bfloat16)
    if model.device.type != "cpu" or not known or is_inside or any(quantised_layers(model)):
        yield
        return
    with ExitStack() as stack:
        if blocked_attention.is_faster(model.dtype):
            stack.enter_context(blocked_attention.used_by(model))
        # Norms before layers: a layer is compared with its norms already replaced.
        for fast in (_NORM, _LAYER):
            for module in _exact_modules(model, fast):
                stack.enter_context(replaced_forward(module, fast.forward))
        yield


class _FastPass(NamedTuple):
    """A faster forward pass for some modules."""

    matches: Callable[[nn.Module], bool]
    """Whether a module looks like one whose forward pass can be replaced."""
    forward: Callable[..., Tensor]
    trial_inputs: Callable[[PreTrainedModel, nn.Module], tuple[Tensor, dict] | None]
    """Random hidden states, and other arguments, for the comparison with the module's own forward pass; None if there
    can be none."""
    bypassed: Callable[[nn.Module], list[nn.Module]]
    """Modules inside the module whose computation `forward` does itself, without calling them."""


def _exact_modules(model: PreTrainedModel, fast: _FastPass) -> list[nn.Module]:
    """Return the modules that `fast` computes exactly, without those that would skip a user's hook or forward."""
    return [
        module
        for module in model.modules()
        if fast.matches(module)
        and "forward" not in vars(module)
        and not any(has_hooks(inner) or "forward" in vars(inner) for inner in fast.bypassed(module))
        and _is_exact(model, module, fast)
    ]


_comparisons: WeakKeyDictionary[PreTrainedModel, dict[tuple, bool]] = WeakKeyDictionary()
"""Per model: whether a fast forward pass was found exact, by the code that it would run."""


def _is_exact(model: PreTrainedModel, module: nn.Module, fast: _FastPass) -> bool:
    """Return whether `fast` agrees with the module, compared once per code: an adapter changes the inner modules."""
    values = (value for inner in module.modules() for value in vars(inner).values())
    functions = (value for value in values if inspect.isfunction(value) or inspect.isbuiltin(value))
    code = (fast.forward, model.dtype, type(module).forward, *map(type, module.modules()), *functions)
    known = _comparisons.setdefault(model, {})
    if code not in known:
        with gathered_around(model, module):
            known[code] = _agrees(model, module, fast)
    return known[code]


@torch.no_grad()
def _agrees(model: PreTrainedModel, module: nn.Module, fast: _FastPass) -> bool:
    """Return whether `fast` and the module's own forward pass agree on two random sequences."""
    inputs = fast.trial_inputs(model, module)
    if inputs is None:
        return False
    hidden, others = inputs
    # Positional: norms differ in the name of the argument.
    expected, got = type(module).forward(module, hidden, **others), fast.forward(module, hidden, **others)
    tolerance = 1e-5 if model.dtype == torch.float32 else 2e-2
    return bool((got.float() - expected.float()).norm() <= tolerance * expected.float().norm())


def _random_hidden_BTD(model: PreTrainedModel, features: int) -> Tensor:
    # Longer than a block of queries, so that attention takes its general path.
    length = blocked_attention.QUERIES + 3
    return torch.randn(2, length, features, generator=probe_generator()).to(model.dtype)


def _is_norm(module: nn.Module) -> bool:
    return (
        type(module).__name__.endswith("RMSNorm")
        and hasattr(module, "variance_epsilon")
        and [name for name, _ in module.named_parameters()] == ["weight"]
    )


def _norm(self: nn.Module, hidden_states: Tensor) -> Tensor:
    """Return `weight * x / rms(x)`: statistics in float32, x rounded to its dtype before the weight, as in Llama."""
    if torch.is_grad_enabled() or hidden_states.dtype != self.weight.dtype or not hidden_states.is_contiguous():
        return type(self).forward(self, hidden_states)
    x_ND = hidden_states.view(-1, hidden_states.shape[-1])
    square_N = torch.linalg.vector_norm(x_ND, dim=-1, dtype=torch.float32).square_().div_(x_ND.shape[1])
    # Batch normalisation with given statistics scales rows in one pass; its channels are our rows.
    zero_N = torch.zeros_like(square_N)
    y_ND = nn.functional.batch_norm(x_ND[None], zero_N, square_N, eps=self.variance_epsilon)[0]
    return y_ND.mul_(self.weight).view_as(hidden_states)


def _norm_inputs(model: PreTrainedModel, module: nn.Module) -> tuple[Tensor, dict]:
    return _random_hidden_BTD(model, module.weight.shape[0]), {}


_NORM = _FastPass(_is_norm, _norm, _norm_inputs, lambda norm: [])


def _is_layer(module: nn.Module) -> bool:
    return class_of(module).__name__ in LAYERS


def _layer(
    self: nn.Module,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    use_cache: bool | None = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs,
) -> Tensor:
    """Return what a decoder layer of Transformers returns."""
    attention, mlp = self.self_attn, self.mlp
    known = attention.config._attn_implementation == blocked_attention.SDPA
    plain = attention_mask is None and cache_in(kwargs) is None and position_embeddings is not None
    if torch.is_grad_enabled() or self.training or not known or not plain:
        return type(self).forward(
            self,
            hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
    normed_BTD = self.input_layernorm(hidden_states)
    hidden_BTD = add_projection(hidden_states, attention.o_proj, _attend(attention, normed_BTD, *position_embeddings))
    normed_BTD = self.post_attention_layernorm(hidden_BTD)
    gate_BTI = mlp.gate_proj(normed_BTD)
    # A new tensor from its product, so it may be overwritten.
    gate_BTI = nn.functional.silu(gate_BTI, inplace=True) if _is_silu(mlp.act_fn) else mlp.act_fn(gate_BTI)
    return add_projection(hidden_BTD, mlp.down_proj, gate_BTI.mul_(mlp.up_proj(normed_BTD)))


def _layer_inputs(model: PreTrainedModel, module: nn.Module) -> tuple[Tensor, dict] | None:
    # A model of more than text holds its decoder deeper inside.
    decoder = next((decoder for decoder in model.modules() if _has_layer(decoder, module)), None)
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None:
        return None
    hidden_BTD = _random_hidden_BTD(model, model.config.get_text_config().hidden_size)
    positions = torch.arange(hidden_BTD.shape[1])[None]
    return hidden_BTD, {"position_embeddings": rotary(hidden_BTD, position_ids=positions)}


def _has_layer(decoder: nn.Module, layer: nn.Module) -> bool:
    layers = getattr(decoder, "layers", None)
    return isinstance(layers, nn.ModuleList) and any(own is layer for own in layers)


def _bypassed_in_layer(layer: nn.Module) -> list[nn.Module]:
    """Return what `_layer` does not call: attention, MLP, its activation, and plain projections to the residual."""
    projections = [layer.self_attn.o_proj, layer.mlp.down_proj]
    inner = [p.base_layer for p in projections if isinstance(p, BaseTunerLayer)]
    activation = [layer.mlp.act_fn] if isinstance(layer.mlp.act_fn, nn.Module) else []
    return [layer.self_attn, layer.mlp, *activation, *projections, *inner]


_LAYER = _FastPass(_is_layer, _layer, _layer_inputs, _bypassed_in_layer)


def _is_silu(function: Callable) -> bool:
    return type(function).__name__ in ("SiLU", "SiLUActivation")


def _attend(attention: nn.Module, x_BTD: Tensor, cos_BTF: Tensor, sin_BTF: Tensor) -> Tensor:
    """Return the input of the output projection, `[B, T, H * F]`."""
    heads = lambda projection: projection(x_BTD).unflatten(-1, (-1, attention.head_dim))  # noqa: E731
    query_BTHF, key_BTGF, value_BTGF = heads(attention.q_proj), heads(attention.k_proj), heads(attention.v_proj)
    if hasattr(attention, "q_norm"):
        query_BTHF, key_BTGF = attention.q_norm(query_BTHF), attention.k_norm(key_BTGF)
    cos_B1TF, sin_B1TF = cos_BTF[:, None].float(), sin_BTF[:, None].float()
    key_BGTF = _rotated(key_BTGF.transpose(1, 2), cos_B1TF, sin_B1TF)
    value_BGTF = value_BTGF.transpose(1, 2)
    if blocked_attention.is_used_by(attention):
        query_BGTRF = query_BTHF.unflatten(2, (key_BGTF.shape[1], -1)).transpose(1, 2)
        turns = [turn[:, :, :, None] * attention.scaling for turn in (cos_B1TF, sin_B1TF)]
        return blocked_attention.causal_attention(_rotated(query_BGTRF, *turns), key_BGTF, value_BGTF)
    query_BHTF = _rotated(query_BTHF.transpose(1, 2), cos_B1TF, sin_B1TF).to(x_BTD.dtype)
    mixed_BHTF = nn.functional.scaled_dot_product_attention(
        query_BHTF, key_BGTF.to(x_BTD.dtype), value_BGTF, is_causal=True, scale=attention.scaling, enable_gqa=True
    )
    return mixed_BHTF.transpose(1, 2).flatten(2)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding (Su et al. 2021, arXiv 2104.09864); return float32, contiguous.

    Rotates each feature of the first half with its counterpart in the second half.
    """
    x, half = x.to(torch.float32, memory_format=torch.contiguous_format), x.shape[-1] // 2
    y = x * cos
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y
