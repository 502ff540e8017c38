"""Forward passes without the output head, on any causal language model of transformers.

Shapes: B sequences, T positions, D hidden size.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.kernels.head import Head
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.patches import replaced_forward


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the transformers model inside any PEFT wrapping."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def head_of(model: PreTrainedModel | PeftModel) -> Head:
    """Return the output head, with soft-capping and scaling where the architecture has them.

    Gemma-2 soft-caps its final logits, Cohere multiplies them, Granite divides them. A loss without these steps would
    optimise a different objective.
    """
    model = causal_lm(model)
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(
        output.weight,
        getattr(output, "bias", None),
        softcap=getattr(config, "final_logit_softcapping", None),
        scale=scale,
    )


def hidden_states(
    model: PreTrainedModel | PeftModel, inputs: dict[str, Tensor], numerics: Numerics | None = None
) -> Tensor:
    """Return `hidden_BTD` after the final norm: a forward pass without the head.

    Args:
        model: With or without adapters.
        inputs: As in `Batch.model_inputs`.
        numerics: Its dtype is used for autocast where a weight has another dtype; None for no autocast.
    """
    decoder = getattr(causal_lm(model), causal_lm(model).base_model_prefix)
    # If all weights have the dtype already, autocast would only slow every operation and round deliberate float32.
    casts = numerics is not None and numerics.dtype != torch.float32 and _dtypes(model) != {numerics.dtype}
    with numerics.autocast() if casts else nullcontext():
        return decoder(**inputs, use_cache=False).last_hidden_state


_cached_dtypes: WeakKeyDictionary[PreTrainedModel, set[torch.dtype]] = WeakKeyDictionary()


def _dtypes(model: PreTrainedModel | PeftModel) -> set[torch.dtype]:
    """Return the dtypes of the model's weights, adapters included."""
    cached = _cached_dtypes.get(causal_lm(model))
    return cached if cached is not None else {parameter.dtype for parameter in causal_lm(model).parameters()}


@contextmanager
def cached_dtypes(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Read the dtypes of the model's weights once for all passes inside the context; they must not change there."""
    lm = causal_lm(model)
    before = _cached_dtypes.get(lm)
    _cached_dtypes[lm] = _dtypes(model)
    try:
        yield
    finally:
        if before is None:
            del _cached_dtypes[lm]


@torch.no_grad()
def packing_is_exact(model: PreTrainedModel | PeftModel, numerics: Numerics) -> bool:
    """Return whether sequences packed into one row give the hidden states that they give alone.

    Some attention implementations read the ends of sequences off the position ids. The others silently let sequences
    attend to each other, so this compares three short sequences.
    """
    model, ids, device = causal_lm(model), torch.arange(12) % model.config.get_text_config().vocab_size, numerics.device
    parts = [ids[:5], ids[5:9], ids[9:]]
    packed = {
        "input_ids": ids[None].to(device),
        "position_ids": torch.cat([torch.arange(len(part)) for part in parts])[None].to(device),
    }
    was_training = model.training
    model.eval()
    together = hidden_states(model, packed, numerics)[0].float()
    alone = torch.cat([hidden_states(model, {"input_ids": part[None].to(device)}, numerics)[0] for part in parts])
    model.train(was_training)
    tolerance = 1e-3 if numerics.dtype == torch.float32 else 0.1
    return bool((together - alone.float()).abs().max() <= tolerance * alone.float().abs().max())


@contextmanager
def accept_token_function(model: PreTrainedModel | PeftModel) -> Iterator[PreTrainedModel | PeftModel]:
    """Let `model(input_ids=..., token_function=f)` return `f(hidden_BTD, head)`; without `f`, the model's own output.

    The head is used within the forward pass of the wrapped model, because wrappers for many devices (DDP's gradient
    hooks, FSDP's gathering of shards) act only there.
    """
    lm = causal_lm(model)
    plain = lm.forward

    def forward(self, *args, token_function=None, **inputs):
        if token_function is None:
            return plain(*args, **inputs)
        return token_function(hidden_states(self, inputs), head_of(self))

    # Trainer reads the signature to find the dataset columns that the model takes.
    signature = inspect.signature(plain)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])
    with replaced_forward(lm, forward):
        yield model
