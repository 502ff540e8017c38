"""Forward passes for inference on a CPU: the same numbers in fewer passes over the activations.

Inside `fast_inference(model)`:
- causal attention goes block by block (`blocked_attention.py`) where PyTorch's own kernel is the slower one,
- RMS norms scale rows without a float32 copy of the activations,
- decoder layers of the Llama kind rotate queries and keys where attention reads them, multiply the gate of their MLP
  in place, and add to the residual stream within the product.

A module is known by its class and structure, and the first of each class is tried against its own forward pass before
any is replaced; one that is unknown, or differs, stays as it is, and so does every call that is not plain inference
(a gradient, a cache, a mask). Knows nothing of what is computed from the hidden states.

Shapes: B sequences, T positions, N = B * T rows, D hidden size, H heads, G key heads, F features of a head.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenuq_ml.models import blocked_attention
from tokenuq_ml.models.forward import cached_dtypes
from tokenuq_ml.models.lora_linear import add_projection
from tokenuq_ml.seeding import probe_generator

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "GemmaDecoderLayer")
"""Norm, attention, sum, norm, gated MLP, sum; rotary embeddings over whole heads, halves rotated against each other."""


@contextmanager
def fast_inference(model: PreTrainedModel) -> Iterator[None]:
    """Inside, forward passes of `model` on a CPU that want no gradient are fast; nothing of it stays behind.

    `model` is the transformers model, not PEFT's wrapping of it. Inside another such context it does nothing.
    """
    with cached_dtypes(model), _fast_modules(model):
        yield


@contextmanager
def _fast_modules(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    if model.device.type != "cpu" or before != "sdpa" or model.dtype not in (torch.float32, torch.bfloat16):
        yield
        return
    swapped: list[nn.Module] = []
    try:
        if blocked_attention.is_faster(model.dtype):
            model.set_attn_implementation(blocked_attention.NAME)
        for find, forward in ((_is_norm, _norm), (_is_layer, _layer)):
            swapped += _swap(model, find, forward)
        yield
    finally:
        for module in swapped:
            del module.forward
        model.set_attn_implementation(before)


_tried: WeakKeyDictionary[PreTrainedModel, dict[tuple, bool]] = WeakKeyDictionary()
"""Of each model, the code of which a fast forward pass was found exact or not."""


def _swap(model: PreTrainedModel, find: Callable[[nn.Module], bool], forward: Callable) -> list[nn.Module]:
    """Gives what `find` knows another forward pass; modules of a class whose first one differs keep theirs."""
    exact: dict[type, bool] = {}
    swapped = []
    for module in model.modules():
        if not find(module) or "forward" in vars(module):
            continue
        kind = type(module)
        if kind not in exact:
            exact[kind] = _is_exact(model, module, forward)
        if exact[kind]:
            module.forward = types.MethodType(forward, module)
            swapped.append(module)
    return swapped


def _is_exact(model: PreTrainedModel, module: nn.Module, forward: Callable) -> bool:
    """`_agrees`, tried once of each code that would run: an adapter puts modules of other types beneath."""
    code = (forward, model.dtype, type(module).forward, *map(type, module.modules()))
    tried = _tried.setdefault(model, {})
    if code not in tried:
        tried[code] = _agrees(model, module, forward)
    return tried[code]


@torch.no_grad()
def _agrees(model: PreTrainedModel, module: nn.Module, forward: Callable) -> bool:
    """Whether `forward` gives what the module's own forward pass gives, of two random sequences."""
    features = module.weight.shape[0] if hasattr(module, "weight") else model.config.get_text_config().hidden_size
    # Longer than a block of queries, so that attention takes its general way.
    length, generator = blocked_attention.QUERIES + 3, probe_generator()
    hidden_BTD = torch.randn(2, length, features, generator=generator).to(model.dtype)
    inputs = {}
    if forward is _layer:
        positions = torch.arange(length)[None]
        inputs["position_embeddings"] = model.base_model.rotary_emb(hidden_BTD, position_ids=positions)
    expected, got = type(module).forward(module, hidden_BTD, **inputs), forward(module, hidden_BTD, **inputs)
    tolerance = 1e-5 if model.dtype == torch.float32 else 2e-2
    return bool((got.float() - expected.float()).norm() <= tolerance * expected.float().norm())


def _is_norm(module: nn.Module) -> bool:
    return (
        type(module).__name__.endswith("RMSNorm")
        and hasattr(module, "variance_epsilon")
        and [name for name, _ in module.named_parameters()] == ["weight"]
    )


def _norm(self: nn.Module, hidden_states: Tensor) -> Tensor:
    """`weight * x / rms(x)`; statistics in float32, x rounded to its dtype before the weight, as Llama's own does."""
    if torch.is_grad_enabled() or hidden_states.dtype != self.weight.dtype or not hidden_states.is_contiguous():
        return type(self).forward(self, hidden_states)
    x_ND = hidden_states.view(-1, hidden_states.shape[-1])
    square_N = torch.linalg.vector_norm(x_ND, dim=-1, dtype=torch.float32).square_().div_(x_ND.shape[1])
    # Batch normalisation by given statistics, its channels being our rows, scales rows in one pass.
    zero_N = torch.zeros_like(square_N)
    y_ND = nn.functional.batch_norm(x_ND[None], zero_N, square_N, eps=self.variance_epsilon)[0]
    return y_ND.mul_(self.weight).view_as(hidden_states)


def _is_layer(module: nn.Module) -> bool:
    return type(module).__name__ in LAYERS


def _layer(
    self: nn.Module,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values=None,
    use_cache: bool | None = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs,
) -> Tensor:
    attention, mlp = self.self_attn, self.mlp
    known = attention.config._attn_implementation in ("sdpa", blocked_attention.NAME)
    plain = attention_mask is None and past_key_values is None and position_embeddings is not None
    if torch.is_grad_enabled() or self.training or not known or not plain:
        return type(self).forward(
            self,
            hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
    normed_BTD = self.input_layernorm(hidden_states)
    hidden_BTD = add_projection(hidden_states, attention.o_proj, _attend(attention, normed_BTD, *position_embeddings))
    normed_BTD = self.post_attention_layernorm(hidden_BTD)
    gate_BTI = mlp.gate_proj(normed_BTD)
    # Fresh from its product, hence ours to overwrite.
    gate_BTI = nn.functional.silu(gate_BTI, inplace=True) if _is_silu(mlp.act_fn) else mlp.act_fn(gate_BTI)
    return add_projection(hidden_BTD, mlp.down_proj, gate_BTI.mul_(mlp.up_proj(normed_BTD)))


def _is_silu(function: Callable) -> bool:
    return type(function).__name__ in ("SiLU", "SiLUActivation")


def _attend(attention: nn.Module, x_BTD: Tensor, cos_BTF: Tensor, sin_BTF: Tensor) -> Tensor:
    """What goes into the output projection."""
    heads = lambda projection: projection(x_BTD).unflatten(-1, (-1, attention.head_dim))  # noqa: E731
    query_BTHF, key_BTGF, value_BTGF = heads(attention.q_proj), heads(attention.k_proj), heads(attention.v_proj)
    if hasattr(attention, "q_norm"):
        query_BTHF, key_BTGF = attention.q_norm(query_BTHF), attention.k_norm(key_BTGF)
    cos_B1TF, sin_B1TF = cos_BTF[:, None].float(), sin_BTF[:, None].float()
    key_BGTF = _rotated(key_BTGF.transpose(1, 2), cos_B1TF, sin_B1TF)
    value_BGTF = value_BTGF.transpose(1, 2)
    if attention.config._attn_implementation == blocked_attention.NAME:
        query_BGTRF = query_BTHF.unflatten(2, (key_BGTF.shape[1], -1)).transpose(1, 2)
        turns = [turn[:, :, :, None] * attention.scaling for turn in (cos_B1TF, sin_B1TF)]
        return blocked_attention.causal_attention(_rotated(query_BGTRF, *turns), key_BGTF, value_BGTF)
    query_BHTF = _rotated(query_BTHF.transpose(1, 2), cos_B1TF, sin_B1TF).to(x_BTD.dtype)
    mixed_BHTF = nn.functional.scaled_dot_product_attention(
        query_BHTF, key_BGTF.to(x_BTD.dtype), value_BGTF, is_causal=True, scale=attention.scaling, enable_gqa=True
    )
    return mixed_BHTF.transpose(1, 2).flatten(2)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, arXiv 2104.09864), each of the first half of the features with one of the
    second; float32 and contiguous."""
    x, half = x.to(torch.float32, memory_format=torch.contiguous_format), x.shape[-1] // 2
    y = x * cos
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y
