"""Forward passes up to the output head, on any causal language model of transformers.

Shapes: B sequences, T positions, D hidden size.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.kernels.head import Head, LogitsHead
from tokenuq_ml.models.flags import evaluation_mode
from tokenuq_ml.models.gate import linear_head, output_path
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.models.output_layer import causal_lm, decoder_states, own_logits
from tokenuq_ml.models.pass_inputs import start_pass
from tokenuq_ml.models.placement import device_of
from tokenuq_ml.models.router_loss import states_and_router_loss
from tokenuq_ml.models.sharding import gather_head, is_sharded
from tokenuq_ml.patches import replaced_forward


def head_of(model: PreTrainedModel | PeftModel) -> Head:
    """Return the output head, with soft-capping and scaling where the architecture has them.

    Gemma-2 soft-caps its final logits, Cohere multiplies them, Granite divides them. A loss without these steps would
    optimise a different objective. The head of a model whose logits its own forward pass has to compute is a
    `LogitsHead`.

    Raises:
        InputError: the gate refuses the model (`gate.output_path`).
    """
    path, lm = output_path(model), causal_lm(model)
    if not path.from_logits:
        return linear_head(lm, path)
    return LogitsHead.of(path.vocabulary, path.logits_dtype, device_of(lm))


def hidden_states(
    model: PreTrainedModel | PeftModel, inputs: dict[str, Any], numerics: Numerics | None = None
) -> Tensor:
    """Return the states that `head_of(model)` turns into logits.

    These are `hidden_BTD` after the final norm, from a forward pass without the head; or `logits_BTV`, where the
    model's own forward pass has to compute them (`gate.output_path`).

    Args:
        model: With or without adapters.
        inputs: As in `Batch.model_inputs`.
        numerics: Its dtype is used for autocast where a weight has another dtype; None for no autocast.

    Raises:
        InputError: the gate refuses the model.
    """
    lm = causal_lm(model)
    if lm not in _passed_through_root:
        return _states(model, inputs, numerics, lm)
    # Its own passes must not happen inside this one.
    output_path(model)
    with _autocast(model, numerics):
        return lm(**inputs, token_function=lambda states, head: states)


def _states(
    model: PreTrainedModel | PeftModel, inputs: dict[str, Any], numerics: Numerics | None, own_forward: Callable
) -> Tensor:
    """Return the states; `own_forward` computes logits where hidden states would not do."""
    # Before autocast is switched on: the gate runs passes of its own when it meets a model.
    path, lm = output_path(model), causal_lm(model)
    start_pass(lm, inputs)
    with _autocast(model, numerics):
        return own_logits(lm, inputs, own_forward) if path.from_logits else decoder_states(lm, inputs)


def _autocast(model: PreTrainedModel | PeftModel, numerics: Numerics | None) -> AbstractContextManager:
    """Return autocast to the dtype of the numerics; if all weights have it, one that does nothing.

    It would only slow every operation, and round deliberate float32.
    """
    if numerics is None or numerics.dtype == torch.float32 or _dtypes(model) == {numerics.dtype}:
        return nullcontext()
    return numerics.autocast()


_passed_through_root: WeakSet[PreTrainedModel] = WeakSet()


@contextmanager
def passes_through_root(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Let `hidden_states` of a sharded model run the complete model inside the context, as its training does.

    FSDP gathers a layer's weights while the layer before it computes only if a pass starts at the model itself; and
    only then does it gather weights that belong to no layer. The head is gathered from the beginning. For other models,
    this does nothing.
    """
    lm = causal_lm(model)
    if lm in _passed_through_root or not is_sharded(lm):
        yield
        return
    with accept_token_function(model):
        gather_head(lm)
        _passed_through_root.add(lm)
        try:
            yield
        finally:
            _passed_through_root.discard(lm)


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
    ids, device = torch.arange(12) % model.config.get_text_config().vocab_size, numerics.device
    parts = [ids[:5], ids[5:9], ids[9:]]
    packed = {
        "input_ids": ids[None].to(device),
        "position_ids": torch.cat([torch.arange(len(part)) for part in parts])[None].to(device),
    }
    with evaluation_mode(model):
        together = hidden_states(model, packed, numerics)[0].float()
        alone = torch.cat([hidden_states(model, {"input_ids": part[None].to(device)}, numerics)[0] for part in parts])
    tolerance = 1e-3 if numerics.dtype == torch.float32 else 0.1
    return bool((together - alone.float()).abs().max() <= tolerance * alone.float().abs().max())


def _head_in_autocast(model: PreTrainedModel | PeftModel) -> Head:
    """Return the head; one that is trained in float32 as autocast multiplies it, in 16 bits.

    A frozen head is stored in the dtype that it is to be multiplied in.
    """
    head = head_of(model)
    weight_VD, device = head.weight_VD, head.weight_VD.device.type
    if weight_VD.requires_grad and weight_VD.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return replace(head, weight_VD=weight_VD.to(torch.get_autocast_dtype(device)))
    return head


@contextmanager
def accept_token_function(model: PreTrainedModel | PeftModel) -> Iterator[PreTrainedModel | PeftModel]:
    """Let `model(input_ids=..., token_function=f)` return `f(states, head)`; without `f`, the model's own output.

    States and head are those of `hidden_states` and `head_of`. With `router_term=g`, `g(load_balancing_loss)` of a
    mixture of experts is added to the result. A forward pass that the instance has already (TRL's,
    accelerate's) is the one that runs without `f`, and is put back afterwards. The head is used within the forward
    pass of the wrapped model, because wrappers for many devices (DDP's gradient hooks, FSDP's gathering of shards) act
    only there.
    """
    # Now, because the gate runs passes of its own, which must not happen inside a wrapped pass.
    output_path(model)
    lm = causal_lm(model)
    plain = lm.forward

    # Under torch.compile, the layers are compiled; this function, the gate and the token function run as they are.
    @partial(torch.compiler.disable, recursive=False)
    def forward(self, *args, token_function=None, router_term=None, **inputs):
        if token_function is None:
            return plain(*args, **inputs)
        aux_loss = None
        if router_term is None:
            states = _states(self, inputs, None, plain)
        else:
            start_pass(lm, inputs)
            states, aux_loss = states_and_router_loss(lm, inputs, plain, output_path(self).from_logits)
        # After the states: FSDP gathers the weights of the head together with those of the last norm.
        head = torch.compiler.disable(_head_in_autocast)(self)
        total = torch.compiler.disable(token_function)(states, head)
        return total if aux_loss is None else total + router_term(aux_loss).to(total)

    # Trainer reads the signature to find the dataset columns that the model takes.
    signature = inspect.signature(plain)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])
    with replaced_forward(lm, forward):
        yield model
