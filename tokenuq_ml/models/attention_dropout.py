"""Dropout of attention probabilities by keyed masks, in an eager attention that replaces the model's own.

Shapes: B sequences, T positions, H heads, F features of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenuq_ml.models.keyed_masks import KeyedMasks, kept_scale

ATTENTION = "tokenuq_keyed_dropout"
"""Name of this attention in a model's configuration."""


@contextmanager
def attention_dropout(model: PreTrainedModel, masks: KeyedMasks) -> Iterator[None]:
    """Drop attention probabilities by keyed masks in the passes inside the context."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, partial(_attention, masks))
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attention(masks: KeyedMasks, module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
    """Return softmax attention with dropped probabilities, `[B, T, H, F]`, and None for the weights.

    Queries are `[B, H, T, F]`; keys and values may have fewer heads. One mask over keys applies to all queries
    (`mask="sequence"`), or each query has its own.
    """
    shared, spec = query.shape[1] // key.shape[1], masks.spec
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    heads, length = query.shape[1], key.shape[2]
    p_BHTT = torch.softmax(scores, -1, dtype=torch.float64 if scores.dtype == torch.float64 else torch.float32)
    if spec.attention_dropout:
        # One stream per head, so that longer padding only extends it.
        kept = [_kept(masks, module.layer_idx, head, length) for head in range(heads)]
        p_BHTT = p_BHTT * (torch.stack(kept, 1) != 0) * kept_scale(spec.attention_dropout)
    return (p_BHTT.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


def _kept(masks: KeyedMasks, layer: int, head: int, length: int) -> Tensor:
    """Return `[B, 1 or T, T]` for one head, all ones where kept.

    With a mask per query, draws fill the lower triangle row by row, so that padding does not change them.
    """
    if masks.spec.mask == "sequence":
        return masks.for_attention(layer, head, length)[:, None]
    rows, columns = torch.tril_indices(length, length, device=masks.device)
    drawn_BN = masks.for_attention(layer, head, len(rows))
    kept_BTT = drawn_BN.new_full((len(drawn_BN), length, length), -1)
    kept_BTT[:, rows, columns] = drawn_BN
    return kept_BTT
