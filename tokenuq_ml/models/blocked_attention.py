"""Causal attention of complete sequences on a CPU, one block of queries at a time, for inference.

Each block reads only the keys up to its end, and its scores stay in the processor's cache. Scores and their softmax are
float32, whatever the model's dtype; query heads that share a key head share its products. Handles only the causal
mask and no rotary embeddings; other calls go to Transformers' SDPA.

Shapes: B sequences, T positions, G key heads, R query heads per key head, F features of a head, S = B * G, Q queries of
a block.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SDPA = "sdpa"
"""Name in a model's configuration of the attention that this one takes the place of."""
QUERIES = 32
"""Queries per block: fewer make the products too small, more compute scores that the causal mask discards."""
BLOCK_SCORES = 2**18
"""Most float32 scores at a time (1 MiB), unless one key head of one sequence exceeds it."""


def causal_attention(query_BGTRF: Tensor, key_BGTF: Tensor, value_BGTF: Tensor) -> Tensor:
    """Return softmax attention in which each query reads the keys up to its own position. No gradient.

    Args:
        query_BGTRF: float32, already scaled.
        key_BGTF: float32.
        value_BGTF: In the model's dtype.

    Returns:
        `[B, T, G * R * F]` in the dtype of the values.
    """
    with torch.autocast(value_BGTF.device.type, enabled=False):
        return _causal_attention(query_BGTRF, key_BGTF, value_BGTF)


def _causal_attention(query_BGTRF: Tensor, key_BGTF: Tensor, value_BGTF: Tensor) -> Tensor:
    batch, groups, length, shared, features = query_BGTRF.shape
    query_STRF, key_SFT = query_BGTRF.flatten(0, 1), key_BGTF.flatten(0, 1).transpose(1, 2)
    value_STF = value_BGTF.flatten(0, 1)
    out_BTGRF = value_BGTF.new_empty(batch, length, groups, shared, features)
    later_QQ = torch.full((QUERIES, QUERIES), float("-inf")).triu_(1)
    for first in range(0, length, QUERIES):
        end = min(first + QUERIES, length)
        queries = end - first
        heads_at_once = max(1, BLOCK_SCORES // (queries * shared * end))
        parts = []
        for start in range(0, batch * groups, heads_at_once):
            heads = slice(start, start + heads_at_once)
            block_SQF = query_STRF[heads, first:end].flatten(1, 2)
            score_SQT = torch.bmm(block_SQF, key_SFT[heads, :, :end])
            # Keys within the block: the only ones that are later than some of its queries.
            own_SQRQ = score_SQT.unflatten(1, (queries, shared))[..., first:]
            own_SQRQ += later_QQ[:queries, None, :queries]
            weight_SQT = torch.softmax(score_SQT, -1).to(value_STF.dtype)
            parts.append(torch.bmm(weight_SQT, value_STF[heads, :end]))
        block_BGQRF = (parts[0] if len(parts) == 1 else torch.cat(parts)).view(batch, groups, queries, shared, features)
        out_BTGRF[:, first:end] = block_BGQRF.transpose(1, 2)
    return out_BTGRF.flatten(2)


def is_faster(dtype: torch.dtype) -> bool:
    """Return whether this attention is faster than PyTorch's own kernel, by the processor's flags.

    PyTorch's kernel multiplies bfloat16 blocks by AMX tiles where the processor has them, and otherwise by small
    products that run at a fraction of the processor's rate. Depends on no timing, so that results can be repeated.
    """
    return dtype == torch.float32 or (dtype == torch.bfloat16 and not torch.cpu._is_amx_tile_supported())


_users: Counter[int] = Counter()
"""Contexts by the id of each module inside them."""
_lock = threading.Lock()


@contextmanager
def used_by(model: nn.Module) -> Iterator[None]:
    """Compute the attention of a model whose configuration says `sdpa` by blocks inside the context.

    The configuration goes on to say `sdpa`. Under a new name, architectures that ask for the name would skip a step:
    sparse attention (DeepSeek-V3.2, GLM-MoE-DSA, MiniMax-M3) builds its mask for `eager` and `sdpa` only.
    """
    modules = [id(module) for module in model.modules()]
    with _lock:
        if not _users:
            ALL_ATTENTION_FUNCTIONS.register(SDPA, _attention)
        _users.update(modules)
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                _users[module] -= 1
                if not _users[module]:
                    del _users[module]
            if not _users:
                ALL_ATTENTION_FUNCTIONS.register(SDPA, sdpa_attention_forward)


def is_used_by(module: nn.Module) -> bool:
    """Return whether the module is part of a model inside `used_by`."""
    return id(module) in _users


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
    """Implement Transformers' interface: `[B, T, H, F]` from queries `[B, H, T, F]`, and None for the weights."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    plain = attention_mask is None and causal and not dropout and query.device.type == "cpu"
    known = all(kwargs.get(name) is None for name in ("position_bias", "s_aux", "cache", "softcap"))
    square = query.shape[2] == key.shape[2] and query.shape[-1] == value.shape[-1]
    ours = is_used_by(module) and is_faster(query.dtype)
    if not (plain and known and square and ours) or _needs_gradient(query, key, value):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query_BGTRF = query.unflatten(1, (key.shape[1], -1)).transpose(2, 3).float() * scaling
    out = causal_attention(query_BGTRF, key.float(), value)
    return out.unflatten(-1, (query.shape[1], -1)), None


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
