"""The gate before every fast path: is a model what the product of hidden states and output layer assumes?

Everything here computes losses from the last hidden states and the output layer, a chunk of tokens at a time. That
assumes a plain linear layer, a factor and a soft cap; that padding on the right changes nothing; and that a text does
not depend on the others in its batch. The gate checks this on two short texts against the model's own forward pass. A
model whose logits are something else is run by its own forward pass (`LogitsHead`); any other is refused.

Shapes: B sequences, T positions, V vocabulary.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.errors import InputError, NonFiniteError
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.models.flags import evaluation_mode
from tokenuq_ml.models.non_finite import first_non_finite_module, output_layer_name
from tokenuq_ml.models.output_layer import (
    causal_lm,
    configured_factors,
    configured_transform,
    decoder_states,
    has_hooks,
    output_layer,
    own_logits,
    sees_logits,
    why_not_linear,
)
from tokenuq_ml.models.placement import check_adapters_in_memory, device_of
from tokenuq_ml.models.sharding import class_of
from tokenuq_ml.seeding import probe_generator
from tokenuq_ml.system_errors import is_system_error

LENGTHS = (9, 5)
"""Tokens of the two texts of the trial."""
NARROW = (torch.bfloat16, torch.float16)
SHIFTED = "is the decoder of an encoder-decoder, whose own loss takes labels that are shifted already"
UNUSABLE = {
    "reformer": "hashes keys at random, so that two passes over a text of several chunks differ",
    "trocr": SHIFTED,
}
"""Model types that a short trial does not show to be unusable, and why they are."""


@dataclass(frozen=True)
class OutputPath:
    """How the logits of a model are computed here."""

    reason: str | None
    """Why its own forward pass computes them; None: they are `cap(scale * (hidden @ weight.T + bias))`."""
    scale: float = 1.0
    softcap: float | None = None
    vocabulary: int = 0
    """V."""
    logits_dtype: torch.dtype = torch.float32
    """Of its own forward pass."""

    @property
    def from_logits(self) -> bool:
        """Whether the model's own forward pass computes the logits."""
        return self.reason is not None


_decided: WeakKeyDictionary[PreTrainedModel, dict[tuple, OutputPath]] = WeakKeyDictionary()
_lock = threading.RLock()


@torch.compiler.disable
def output_path(model: PreTrainedModel | PeftModel) -> OutputPath:
    """Return how the model's logits are computed, decided once for each state of its adapters.

    The decision takes four forward passes over fourteen tokens, in eval mode; flags and random generators stay as they
    were. Call it before a model is wrapped for several devices: inside the wrapped pass, no other pass may run.

    Raises:
        InputError: the model is no causal language model over text, its logits are not finite, or they depend on
            padding or on other texts of the batch.
    """
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        kind = model.active_peft_config.peft_type.value
        raise InputError(
            f"the model has a prompt-learning adapter ({kind}), whose virtual tokens this forward pass does not have; "
            "use LoRA, or score the model with PEFT's own forward pass"
        )
    lm = causal_lm(model)
    with _lock:
        known, state = _decided.setdefault(lm, {}), _state(lm)
        if state not in known:
            known[state] = _decide(lm)
        return known[state]


def _state(lm: PreTrainedModel) -> tuple:
    """Return what may change the path: the output layer, its adapters, and hooks that see the logits."""
    layer, outer = output_layer(lm), lm.get_output_embeddings()
    adapted = [next((module for module in lm.modules() if isinstance(module, BaseTunerLayer)), None)]
    adapted += [outer] if isinstance(outer, BaseTunerLayer | AuxiliaryTrainingWrapper) else []
    adapters = [(tuple(m.active_adapters), bool(m.disable_adapters)) for m in adapted if m is not None]
    return id(layer), type(layer), layer is not None and has_hooks(layer), sees_logits(lm), *adapters


@torch.no_grad()
def _decide(lm: PreTrainedModel) -> OutputPath:
    """Return the path of the model as it is now."""
    if lm.config.is_encoder_decoder:
        raise InputError(_refusal(lm, "is an encoder-decoder", "use a decoder-only language model"))
    # Of the class: transformers changes the flag of a decoder (`BartForCausalLM`) without its encoder.
    why = SHIFTED if type(lm.config).is_encoder_decoder else UNUSABLE.get(lm.config.model_type)
    if getattr(lm.config, "attention_type", None) == "block_sparse":
        what = "attends by blocks that depend on the length of the batch"
        raise InputError(_refusal(lm, what, "set `attention_type` of its configuration to original_full"))
    if why:
        raise InputError(_refusal(lm, why, "use a decoder-only language model that attends to earlier tokens"))
    if not lm.config.return_dict:
        raise InputError(_refusal(lm, "returns tuples (`config.return_dict` is False)", "set it to True"))
    check_adapters_in_memory(lm)
    batch_BT, texts = _trial(lm)
    with evaluation_mode(lm), torch.autocast(device_of(lm).type, enabled=False):
        with _mixed_dtypes(lm):
            own_BTV = _own(lm, batch_BT)
            _check_batch_independence(lm, own_BTV, texts)
            reason = why_not_linear(output_layer(lm)) or ("it has forward hooks" if sees_logits(lm) else None)
            path = None if reason else _linear_path(lm, batch_BT, own_BTV)
    reason = reason or "its logits are not those of its output layer with a factor and a soft cap"
    return path or OutputPath(reason, vocabulary=own_BTV.shape[-1], logits_dtype=own_BTV.dtype)


def _trial(lm: PreTrainedModel) -> tuple[Tensor, list[Tensor]]:
    """Return the two texts as a padded batch `[2, T]`, and each alone, `[1, T]`."""
    embeddings = lm.get_input_embeddings()
    if not hasattr(embeddings, "weight"):
        raise InputError(_refusal(lm, "has no table of token embeddings", "use a causal language model over text"))
    rows = embeddings.weight.shape[0]
    ids_T = torch.randint(rows, (sum(LENGTHS),), generator=probe_generator()).to(device_of(lm))
    texts = list(ids_T[None].split(LENGTHS, dim=1))
    pad = max(LENGTHS)
    return torch.cat([torch.nn.functional.pad(text, (0, pad - text.shape[1])) for text in texts]), texts


@contextmanager
def _mixed_dtypes(lm: PreTrainedModel) -> Iterator[None]:
    """Let a model with weights in several dtypes run, as it does in a Trainer with `bf16=True`."""
    dtypes = {parameter.dtype for parameter in lm.parameters() if parameter.is_floating_point()}
    narrow = next((dtype for dtype in NARROW if dtype in dtypes), None)
    casts = len(dtypes) > 1 and narrow is not None
    with torch.autocast(device_of(lm).type, narrow) if casts else nullcontext():
        yield


def _own(lm: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Return the logits of the model's own forward pass.

    Raises:
        InputError: it takes other inputs, or returns something else or numbers that are not finite.
    """
    try:
        logits_BTV = own_logits(lm, {"input_ids": ids_BT})
    # What a model that wants images, an encoder's states or the cache of another model raises.
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        if is_system_error(error):
            raise
        what, remedy = f"has no forward pass from token ids alone ({error})", "use a causal language model over text"
        if any(isinstance(module, BaseTunerLayer) for module in lm.modules()):
            remedy += ", or leave layers that fail with an adapter out of its target_modules"
        raise InputError(_refusal(lm, what, remedy)) from error
    if not isinstance(logits_BTV, Tensor) or logits_BTV.shape[:-1] != ids_BT.shape:
        raise InputError(_refusal(lm, "returns no logits of each token", "use a causal language model over text"))
    if not torch.isfinite(logits_BTV).all():
        module = first_non_finite_module(lm, lambda: own_logits(lm, {"input_ids": ids_BT})) or output_layer_name(lm)
        what = f"gives logits that are not finite (NaN or Inf), first in the output of {module}"
        raise NonFiniteError(_refusal(lm, what, "check its weights"))
    return logits_BTV


def _check_batch_independence(lm: PreTrainedModel, own_BTV: Tensor, texts: list[Tensor]) -> None:
    """Compare each text of the padded batch with the text alone."""
    tolerance = 0.1 if _is_narrow(lm) else 1e-3
    for row_TV, text in zip(own_BTV, texts, strict=True):
        if not _close(row_TV[: text.shape[1]], _own(lm, text)[0], tolerance):
            what = "gives a text other logits in a padded batch than alone"
            raise InputError(_refusal(lm, what, "use a model that attends to earlier tokens only"))


def _linear_path(lm: PreTrainedModel, ids_BT: Tensor, own_BTV: Tensor) -> OutputPath | None:
    """Return the path by hidden states and output layer if it gives the model's logits."""
    try:
        hidden_BTD = decoder_states(lm, {"input_ids": ids_BT})
        scale, softcap = configured_transform(lm)
        for factor in (scale, *_other_factors(lm, hidden_BTD, own_BTV)):
            path = OutputPath(None, factor, softcap, own_BTV.shape[-1], own_BTV.dtype)
            head = linear_head(lm, path)
            if _close(head.finish(head.product(hidden_BTD)), own_BTV, 2e-2 if _is_narrow(lm) else 1e-4):
                return path
    except (TypeError, AttributeError, RuntimeError) as error:
        if is_system_error(error):
            raise
        # A decoder with other arguments, outputs or shapes than those of most models.
        return None
    return None


def _other_factors(lm: PreTrainedModel, hidden_BTD: Tensor, own_BTV: Tensor) -> Iterator[float]:
    """Yield factors of the logits that the configuration holds under any name."""
    head = linear_head(lm, OutputPath(None))
    plain_BTV, own_BTV = head.finish(head.product(hidden_BTD)), own_BTV.float()
    fitted = float((plain_BTV * own_BTV).sum() / plain_BTV.square().sum())
    yield from configured_factors(lm, near=fitted)


def linear_head(lm: PreTrainedModel, path: OutputPath) -> Head:
    """Return the output layer with the path's factor and soft cap."""
    layer = output_layer(lm)
    assert layer is not None
    return Head(layer.weight, getattr(layer, "bias", None), softcap=path.softcap, scale=path.scale)


def _is_narrow(lm: PreTrainedModel) -> bool:
    """Return whether products are rounded to 16 bits or fewer somewhere."""
    return any(p.dtype in NARROW or not p.is_floating_point() for p in lm.parameters())


def _close(ours: Tensor, own: Tensor, tolerance: float) -> bool:
    """Return whether logits agree, relative to their norm."""
    # `<=`, so that numbers that are not finite do not agree.
    return bool((ours.float() - own.float()).norm() <= tolerance * own.float().norm())


def _refusal(lm: PreTrainedModel, what: str, remedy: str) -> str:
    return f"{class_of(lm).__name__} {what}; {remedy}"
