"""Attention of long packed rows, one document at a time, so that no mask of all pairs of positions is made.

transformers keeps the documents of a packed row apart by a mask for its SDPA: 1.6 GB for 40,000 tokens, which PyTorch
makes four times as large on a CPU, and with which its flash kernel cannot be used. Here each document is a causal
attention of its own without a mask. Handles plain causal attention, and windows longer than every document; other masks
stay transformers'. `attention: flash_attention_2` and `flex` know documents themselves.

Shapes: B sequences (1), T positions, H heads, F features of a head.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenuq_ml.models.forward import packing_is_exact
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.models.output_layer import causal_lm
from tokenuq_ml.system_errors import is_system_error

SDPA = "sdpa"
LONG_ROW = 8192
"""Tokens above which a packed row is separated: its mask would take more than 64 MiB."""

_pass = threading.local()
"""`lengths`: the documents of the pass that runs in this thread; None or missing if it is not to be separated."""


@contextmanager
def separated_documents(model: PreTrainedModel | PeftModel, longer_than: int) -> Iterator[None]:
    """Compute the attention of packed rows by documents inside the context, for a model whose attention is SDPA.

    Args:
        model: its passes may be packed or not.
        longer_than: rows of up to that many tokens keep transformers' mask.
    """

    def note_documents(decoder: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
        _pass.lengths = _document_lengths(inputs, longer_than)

    lm = causal_lm(model)
    decoder = lm.base_model if hasattr(lm, lm.base_model_prefix) else lm.model
    before = ALL_ATTENTION_FUNCTIONS[SDPA]
    hook = decoder.register_forward_pre_hook(note_documents, with_kwargs=True)
    ALL_MASK_ATTENTION_FUNCTIONS.register(SDPA, _mask)
    ALL_ATTENTION_FUNCTIONS.register(SDPA, _attention)
    try:
        yield
    finally:
        hook.remove()
        _pass.lengths = None
        ALL_MASK_ATTENTION_FUNCTIONS.register(SDPA, sdpa_mask)
        ALL_ATTENTION_FUNCTIONS.register(SDPA, before)


def _document_lengths(inputs: dict[str, Any], longer_than: int) -> Tensor | None:
    """Return int32 lengths of the row's documents, on the CPU; None if it is not to be separated."""
    positions_BT = inputs.get("position_ids")
    if positions_BT is None or len(positions_BT) != 1 or positions_BT.shape[1] <= longer_than:
        return None
    starts = (positions_BT[0] == 0).nonzero()[:, 0].tolist()
    if starts[:1] != [0] or len(starts) < 2:
        return None
    ends = [*starts[1:], positions_BT.shape[1]]
    return torch.tensor([end - start for start, end in zip(starts, ends, strict=True)], dtype=torch.int32)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return the documents' lengths in place of a mask: layers hand them to `_attention`, also when recomputed."""
    lengths = getattr(_pass, "lengths", None)
    is_row = lengths is not None and kwargs["q_length"] == kwargs["kv_length"] == int(lengths.sum())
    # Masks of other kinds are made by `vmap`, and padding has a mask of its own.
    if not is_row or kwargs.get("use_vmap") or kwargs.get("attention_mask") is not None:
        return sdpa_mask(*args, **kwargs)
    window = kwargs.get("local_size")
    if window is not None and window < int(lengths.max()):
        return sdpa_mask(*args, **kwargs)
    return lengths[None, None, None]


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs):
    """Implement transformers' interface: `[B, T, H, F]` from queries `[B, H, T, F]`, and None for the weights."""
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths = attention_mask.flatten().tolist()
    kwargs["is_causal"] = True
    parts = zip(*(one.split(lengths, dim=2) for one in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, *part, None, **kwargs)[0] for part in parts]
    return torch.cat(outputs, dim=1), None


def can_be_separated(model: PreTrainedModel | PeftModel, numerics: Numerics) -> bool:
    """Return whether documents in `separated_documents` have the hidden states that they have alone."""
    if causal_lm(model).config._attn_implementation != SDPA:
        return False
    with separated_documents(model, longer_than=0):
        try:
            return packing_is_exact(model, numerics)
        except (RuntimeError, TypeError, ValueError) as error:
            if is_system_error(error):
                raise
            # An architecture that computes with the mask, or hands it to PyTorch itself.
            return False
