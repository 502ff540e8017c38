"""The implementation of attention that a study names: what transformers calls it, and whether it can be used here.

What cannot be used is refused when the model is loaded: transformers would fail in the first pass or the first
backward pass, or fetch a kernel from the hub. An implementation that a study names is also compared with eager
attention on a short text, since some leave out what an architecture asks for, for example a soft cap of the scores.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tokenuq_ml.config.base_keys import NARROW_ATTENTION, Attention
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.seeding import probe_generator

NAMES: dict[Attention, str] = {
    "sdpa": "sdpa",
    "eager": "eager",
    "flex": "flex_attention",
    "flash_attention_2": "flash_attention_2",
}
"""Name in a study -> name in transformers."""
TOKENS = 9
"""Of the text on which an implementation is compared with eager attention."""


def attention_name(attention: Attention, numerics: Numerics, precision: str) -> str | None:
    """Return what transformers calls the implementation; None: transformers chooses.

    A study with `flex` or `flash_attention_2` asks for float32 for BALD and the like only, where transformers' choice
    takes the place of these two.

    Args:
        attention: as the study names it.
        numerics: of the passes.
        precision: that was asked for, as for `resolve_numerics`.

    Raises:
        InputError: this machine cannot use it.
    """
    if attention == "auto":
        return None
    if attention in NARROW_ATTENTION:
        if numerics.device == "cpu":
            what = "has no gradients on a CPU" if attention == "flex" else "runs on a GPU only"
            raise InputError(f"attention: {attention} {what}; set `attention: sdpa`, or run the study on a GPU")
        if precision == "float32":
            return None
        if numerics.dtype == torch.float32:
            raise InputError(
                f"attention: {attention} computes in bfloat16, which this GPU does not multiply; set `attention: sdpa`"
            )
        # transformers would fetch a kernel from the hub instead, if the package `kernels` is there.
        if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
            raise InputError(
                "attention: flash_attention_2 needs the package flash-attn, which is not installed; install it for "
                "this torch and CUDA, or set `attention: sdpa`"
            )
    return NAMES[attention]


@contextmanager
def refused_attention(attention: Attention, folder: str | Path) -> Iterator[None]:
    """Turn transformers' refusal of an implementation, while a model is loaded, into an InputError."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if attention == "auto" or "ttention" not in str(error):
            raise
        raise InputError(
            f"{folder}: transformers cannot compute this model with attention: {attention} "
            f"({str(error).splitlines()[0]}); set another one, or leave the key out"
        ) from error


@torch.no_grad()
def check_attention(model: PreTrainedModel, attention: Attention, folder: str | Path) -> None:
    """Compare the hidden states of a short text with those of eager attention, if the study names another one.

    Args:
        model: in eval mode, with the implementation that it was loaded with.
        attention: as the study names it.
        folder: of the model, for the message.

    Raises:
        InputError: they differ by more than rounding.
    """
    own = model.config._attn_implementation
    if attention in ("auto", "eager") or own == "eager":
        return
    rows = model.get_input_embeddings().weight.shape[0]
    ids_BT = torch.randint(rows, (1, TOKENS), generator=probe_generator()).to(model.device)
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
    model.set_attn_implementation("eager")
    try:
        eager_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
    finally:
        model.set_attn_implementation(own)
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    # `<=`, so that numbers that are not finite do not agree.
    if not (logits_BTV - eager_BTV).norm() <= tolerance * eager_BTV.norm():
        raise InputError(
            f"{folder}: attention: {attention} gives this model other logits than eager attention does; set "
            "`attention: eager`, or leave the key out"
        )
