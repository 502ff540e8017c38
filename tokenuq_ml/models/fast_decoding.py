"""Faster passes over one token of each row, for generation: the same bits in fewer operations.

Inside `fast_steps(model)`, decoder layers of the Llama kind compute the projections of one input as one product
(`packed_projections.py`). They do so only with a `RowCache`: other calls run the layer's own forward pass, and so do
layers in which a user's hook or forward pass would not run. The caller compares the model's logits with its own
(`evaluation/decode_loop.py`).

Inside `fast_head(model)`, the output layer takes the last states of a batch of prompts as one product. PyTorch
multiplies states that are not contiguous text by text, and copies the weight for each text: 1.8 GB for 32 prompts and a
vocabulary of 49,152.

Shapes: M rows, D hidden size, H heads, G key heads, R = H / G, F features of a head, T columns of the cache, N = B * T.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenuq_ml.models.blocked_attention import SDPA
from tokenuq_ml.models.fast_inference import LAYERS
from tokenuq_ml.models.output_layer import has_hooks, output_layer
from tokenuq_ml.models.packed_projections import Projections, fits_twice
from tokenuq_ml.models.row_cache import RowCache, cache_in
from tokenuq_ml.patches import replaced_forward


@contextmanager
def fast_steps(model: PreTrainedModel) -> Iterator[None]:
    """Make passes of `model` over one token of each row faster inside the context; restore its modules afterwards.

    Neither the weights nor the active adapter may change inside the context.

    Args:
        model: The transformers model, not PEFT's wrapping of it (`causal_lm`).
    """
    pack = model.device.type == "cpu" and fits_twice(model)
    with ExitStack() as stack:
        for module in model.modules():
            if _is_layer(module):
                stack.enter_context(replaced_forward(module, _step_of(_Layer.of(module, pack))))
        yield


@contextmanager
def fast_head(model: PreTrainedModel) -> Iterator[None]:
    """Make a linear output layer multiply the last states of a batch as one product inside the context."""
    head = output_layer(model)
    if head is None or type(head) is not nn.Linear or has_hooks(head) or "forward" in vars(head):
        yield
        return
    pack = model.device.type == "cpu" and fits_twice(model)
    with replaced_forward(head, _head_of(Projections([head], pack))):
        yield


def _is_layer(module: nn.Module) -> bool:
    if type(module).__name__ not in LAYERS or "forward" in vars(module):
        return False
    attention, mlp = module.self_attn, module.mlp
    known = attention.config._attn_implementation == SDPA and getattr(attention, "sliding_window", None) is None
    return known and not any(has_hooks(inner) or "forward" in vars(inner) for inner in (attention, mlp))


@dataclass(frozen=True)
class _Layer:
    """The projections of a decoder layer."""

    qkv: Projections
    out: Projections
    gate_up: Projections
    down: Projections

    @classmethod
    def of(cls, layer: nn.Module, pack: bool) -> "_Layer":
        attention, mlp = layer.self_attn, layer.mlp
        groups = (
            [attention.q_proj, attention.k_proj, attention.v_proj],
            [attention.o_proj],
            [mlp.gate_proj, mlp.up_proj],
            [mlp.down_proj],
        )
        return cls(*(Projections(group, pack) for group in groups))


def _step_of(projections: _Layer) -> Callable[..., Tensor]:
    """Return the forward pass of a decoder layer that has these projections."""

    def forward(
        self: nn.Module,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs,
    ) -> Tensor:
        cache = cache_in(kwargs)
        plain = isinstance(cache, RowCache) and hidden_states.shape[1] == 1
        plain &= attention_mask is None or (attention_mask.dim() == 4 and attention_mask.shape[1] == 1)
        if not plain or position_embeddings is None or torch.is_grad_enabled() or self.training:
            return type(self).forward(
                self,
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        attention, mlp = self.self_attn, self.mlp
        rows, _, width = hidden_states.shape
        qkv = projections.qkv(self.input_layernorm(hidden_states).view(rows, width))
        mixed_MD = _attend(attention, *qkv, position_embeddings, attention_mask, cache)
        # Sums after the product's rounding, as in the layer itself.
        hidden_MD = hidden_states.view(rows, width) + projections.out(mixed_MD)[0]
        gate_MI, up_MI = projections.gate_up(self.post_attention_layernorm(hidden_MD))
        return (hidden_MD + projections.down(mlp.act_fn(gate_MI) * up_MI)[0])[:, None]

    return forward


def _attend(
    attention: nn.Module,
    query_MD: Tensor,
    key_MD: Tensor,
    value_MD: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    mask_M11T: Tensor | None,
    cache: RowCache,
) -> Tensor:
    """Return the input of the output projection, `[M, H * F]`."""
    query_MHF, key_MGF, value_MGF = (
        states_MD.unflatten(-1, (-1, attention.head_dim)) for states_MD in (query_MD, key_MD, value_MD)
    )
    if hasattr(attention, "q_norm"):
        query_MHF, key_MGF = attention.q_norm(query_MHF), attention.k_norm(key_MGF)
    query_MHF, key_MGF = (_rotated(states, *position_embeddings) for states in (query_MHF, key_MGF))
    key_MGTF, value_MGTF = cache.update(key_MGF[:, :, None], value_MGF[:, :, None], attention.layer_idx)
    if mask_M11T is None:
        # As transformers calls it: other threads compute a head, which rounds by the alignment of their buffers.
        mixed_MH1F = nn.functional.scaled_dot_product_attention(
            query_MHF[:, :, None], key_MGTF, value_MGTF, scale=attention.scaling, enable_gqa=True
        )
        return mixed_MH1F.flatten(1)
    query_MGRF = query_MHF.unflatten(1, (key_MGTF.shape[1], -1))
    mixed_MGRF = nn.functional.scaled_dot_product_attention(
        query_MGRF, key_MGTF, value_MGTF, attn_mask=mask_M11T, scale=attention.scaling
    )
    return mixed_MGRF.flatten(1)


def _rotated(x: Tensor, cos_M1F: Tensor, sin_M1F: Tensor) -> Tensor:
    """Apply the rotary embedding in the dtype of the model, as transformers' layers do."""
    first, second = x.chunk(2, -1)
    return x * cos_M1F + torch.cat((-second, first), -1) * sin_M1F


def _head_of(projection: Projections) -> Callable[..., Tensor]:
    """Return the forward pass of an output layer that is this projection."""

    def forward(self: nn.Module, hidden: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return type(self).forward(self, hidden)
        hidden_ND = hidden.reshape(-1, hidden.shape[-1])
        if not projection.packs(hidden_ND):
            return type(self).forward(self, hidden_ND.contiguous()).view(*hidden.shape[:-1], -1)
        return projection(hidden_ND)[0].view(*hidden.shape[:-1], -1)

    return forward
