"""Dropout of attention probabilities by keyed masks, in an eager attention that replaces the model's own.

Shapes: B sequences, T positions, H heads, F features of a head.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenuq_ml.errors import InputError
from tokenuq_ml.models.flags import evaluation_mode
from tokenuq_ml.models.keyed_masks import KeyedMasks, kept_scale
from tokenuq_ml.models.output_layer import own_logits
from tokenuq_ml.models.placement import device_of
from tokenuq_ml.seeding import probe_generator

EAGER = "eager"
"""Name in a model's configuration of the attention that this one takes the place of."""
MORE_THAN_SOFTMAX = ("s_aux", "sinks", "position_bias", "indices", "block_indices")
"""Arguments of attention functions that add something to the softmax of the scores, or replace its mask."""
_functions: dict[int, Callable] = {}
"""What computes the attention of each module inside a context, by its id."""
_lock = threading.Lock()


@contextmanager
def attention_dropout(model: PreTrainedModel, masks: KeyedMasks) -> Iterator[None]:
    """Drop attention probabilities by keyed masks in the passes inside the context.

    `require_softmax_attention` says whether a model can be sampled so.
    """
    with _computed_by(model, partial(_attention, masks)):
        yield


@torch.no_grad()
def require_softmax_attention(model: PreTrainedModel) -> None:
    """Compare the model's own forward pass on two short texts with one whose attention drops nothing.

    Raises:
        InputError: They differ (attention sinks, sparse attention), or the model's attention cannot be replaced.
    """
    remedy = "; set attention_dropout to 0, or use another model"
    ids_BT = torch.randint(model.get_input_embeddings().weight.shape[0], (2, 9), generator=probe_generator())
    inputs, replaced = {"input_ids": ids_BT.to(device_of(model))}, []

    def attend(module: nn.Module, *args, **kwargs):
        replaced.append(module)
        number = getattr(module, "layer_idx", None)
        if number is None or number < 0:
            raise InputError(f"attention of {type(model).__name__} has no layer number to draw its masks by{remedy}")
        return _attention(None, module, *args, **kwargs)

    with evaluation_mode(model):
        own_BTV = own_logits(model, inputs).float()
        with _computed_by(model, attend):
            ours_BTV = own_logits(model, inputs).float()
    if not replaced:
        raise InputError(f"attention of {type(model).__name__} is not one that transformers can replace{remedy}")
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.1
    if not (ours_BTV - own_BTV).norm() <= tolerance * own_BTV.norm():
        raise InputError(f"attention of {type(model).__name__} is more than a softmax of masked scores{remedy}")


@contextmanager
def _computed_by(model: PreTrainedModel, attend: Callable) -> Iterator[None]:
    """Compute the model's attention by `attend`.

    The configuration says `eager`. Under a new name, architectures that ask for the name would skip a step, such as the
    mask of sparse attention.
    """
    before, modules = model.config._attn_implementation, [id(module) for module in model.modules()]
    with _lock:
        if not _functions:
            ALL_ATTENTION_FUNCTIONS[EAGER] = _eager
        _functions.update(dict.fromkeys(modules, attend))
    try:
        model.set_attn_implementation(EAGER)
        yield
    finally:
        model.set_attn_implementation(before)
        with _lock:
            for module in modules:
                del _functions[module]
            if not _functions:
                del ALL_ATTENTION_FUNCTIONS[EAGER]


def _eager(module: nn.Module, *args, **kwargs):
    """Compute the attention of a module inside a context; other models keep the function of their own file."""
    own = sys.modules[type(module).__module__]
    return _functions.get(id(module), getattr(own, "eager_attention_forward", None))(module, *args, **kwargs)


def _attention(masks: KeyedMasks | None, module, query, key, value, attention_mask, scaling=None, softcap=None, **rest):
    """Return softmax attention with dropped probabilities, `[B, T, H, F]`, and None for the weights.

    Queries are `[B, H, T, F]`; keys and values may have fewer heads. One mask over keys applies to all queries
    (`mask="sequence"`), or each query has its own. Without masks, nothing is dropped.
    """
    if more := [name for name in MORE_THAN_SOFTMAX if rest.get(name) is not None]:
        raise InputError(f"attention_dropout does not know attention with {more[0]}; set it to 0, or use another model")
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    heads, length = query.shape[1], key.shape[2]
    p_BHTT = torch.softmax(scores, -1, dtype=torch.float64 if scores.dtype == torch.float64 else torch.float32)
    if masks is not None and (p := masks.spec.attention_dropout):
        # One stream per head, so that longer padding only extends it.
        kept = [_kept(masks, module.layer_idx, head, length) for head in range(heads)]
        p_BHTT = p_BHTT * (torch.stack(kept, 1) != 0) * kept_scale(p)
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
