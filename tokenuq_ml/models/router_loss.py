"""The load-balancing loss of a mixture of experts, which its own forward pass computes from the router's logits.

Architectures differ in how they compute it, so their own code does: a forward pass with the output layer for the last
position only, which also gives the hidden states of all positions.

Shapes: B sequences, T positions.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.models.flags import evaluation_mode
from tokenuq_ml.models.placement import device_of

SWITCH = "output_router_logits"
"""The field of a configuration that makes a model add the loss to its own; also an argument of its forward pass."""

COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
"""Names of the loss's weight in a model (the second one in JetMoE)."""


_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def has_router_loss(lm: PreTrainedModel) -> bool:
    """Return whether the model's own forward pass returns the loss; tried once per model.

    Dense models of a class for mixtures (Granite-4 without experts) fail at it or return nothing.
    """
    if lm not in _known:
        named = hasattr(lm.config.get_text_config(), SWITCH) and SWITCH in _arguments(lm)
        _known[lm] = named and _returns_loss(lm)
    return _known[lm]


@torch.no_grad()
def _returns_loss(lm: PreTrainedModel) -> bool:
    ids_BT = torch.arange(4, device=device_of(lm))[None] % lm.get_input_embeddings().weight.shape[0]
    with evaluation_mode(lm):
        try:
            aux_loss = lm(input_ids=ids_BT, use_cache=False, return_dict=True, **{SWITCH: True}).aux_loss
        except (AttributeError, IndexError, TypeError):
            return False
    return isinstance(aux_loss, Tensor)


def router_coefficient(lm: PreTrainedModel) -> float:
    """Return the weight that the model gives the loss; 0 if it has none."""
    if not has_router_loss(lm):
        return 0.0
    places = [(lm, name) for name in COEFFICIENTS] + [(lm.config.get_text_config(), COEFFICIENTS[0])]
    return next((float(value) for where, name in places if (value := getattr(where, name, None)) is not None), 0.0)


def states_and_router_loss(
    lm: PreTrainedModel, inputs: Mapping[str, Any], own_forward: Callable, from_logits: bool
) -> tuple[Tensor, Tensor]:
    """Return the states that the head turns into logits, and the loss, from one forward pass.

    Args:
        lm: a model for which `has_router_loss`.
        inputs: arguments of the forward pass, without labels. The loss leaves out padding by `attention_mask` only.
        own_forward: the model's own forward pass.
        from_logits: whether the states are the logits (`gate.output_path`).
    """
    inputs = {**inputs, SWITCH: True, "use_cache": False, "return_dict": True}
    if from_logits:
        outputs = own_forward(**inputs)
        return outputs.logits, outputs.aux_loss
    if "logits_to_keep" in _arguments(lm):
        inputs["logits_to_keep"] = 1
    states: list[Tensor] = []
    decoder = getattr(lm, lm.base_model_prefix)
    hook = decoder.register_forward_hook(lambda _module, _inputs, output: states.append(output.last_hidden_state))
    try:
        outputs = own_forward(**inputs)
    finally:
        hook.remove()
    return states[-1], outputs.aux_loss


def _arguments(lm: PreTrainedModel) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(lm).forward).parameters
