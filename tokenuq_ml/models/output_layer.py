"""The two ways to a model's logits: its own forward pass, and its last hidden states with its output layer.

`gate.py` decides between them. Shapes: B sequences, T positions, D hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenuq_ml.models.sharding import class_of

SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Names in a configuration of a factor of the logits (Cohere, Muse, Falcon-H1)."""
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of a soft cap of the logits (Gemma-2, RecurrentGemma, xLSTM)."""


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the transformers model inside any PEFT wrapping."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def decoder_states(lm: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """Return `hidden_BTD` after the final norm: a forward pass of everything but the output layer."""
    # Llama-4 names a prefix that is none of its attributes.
    decoder = lm.base_model if hasattr(lm, lm.base_model_prefix) else lm.model
    return decoder(**inputs, use_cache=False).last_hidden_state


def own_logits(lm: PreTrainedModel, inputs: Mapping[str, Any], forward: Callable | None = None) -> Tensor:
    """Return `logits_BTV` of the model's own forward pass.

    Args:
        lm: the model.
        inputs: arguments of the forward pass, without labels.
        forward: what to call; default: the model, with its hooks.
    """
    return (forward or lm)(**inputs, use_cache=False).logits


def output_layer(lm: PreTrainedModel) -> nn.Module | None:
    """Return the layer that computes the logits; of a layer that PEFT trains a copy of, the one in use."""
    layer = lm.get_output_embeddings()
    if not isinstance(layer, ModulesToSaveWrapper):
        return layer
    active = [name for name in layer.active_adapters if name in layer.modules_to_save]
    return layer.original_module if layer.disable_adapters or not active else layer.modules_to_save[active[0]]


def why_not_linear(layer: nn.Module | None) -> str | None:
    """Return why a product with the layer's weight may not be what the layer computes; None if it is."""
    if layer is None:
        return "it has no output layer"
    if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper):
        return f"its output layer is a {type(layer).__name__} with an adapter"
    if class_of(layer) is not nn.Linear:
        return f"its output layer is a {class_of(layer).__name__}"
    if has_hooks(layer) or "forward" in vars(layer):
        return "its output layer has hooks or a forward pass of its own"
    if layer.weight.is_meta:
        return "its output layer is offloaded"
    return None if layer.weight.is_floating_point() else f"its output layer has weights in {layer.weight.dtype}"


def has_hooks(module: nn.Module) -> bool:
    """Return whether a hook of the user's runs before or after the module's forward or backward pass."""
    kinds = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(_is_users(hook) for hooks in kinds for hook in hooks.values())


def sees_logits(lm: nn.Module) -> bool:
    """Return whether a hook of the user's runs after the model's forward pass, on its logits."""
    return any(_is_users(hook) for hook in lm._forward_hooks.values())


def _is_users(hook: Callable) -> bool:
    """Return whether a hook is neither ours (float64 passes) nor PyTorch's (FSDP), which change no result."""
    return not str(getattr(hook, "__module__", "")).startswith(("tokenuq_ml.", "torch.distributed."))


def configured_transform(lm: PreTrainedModel) -> tuple[float, float | None]:
    """Return factor and soft cap of the logits under the names that architectures give them."""
    config = lm.config.get_text_config()
    scale = next((value for name in SCALES if (value := getattr(config, name, None))), None)
    if scale is None:
        scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    return scale, next((value for name in SOFTCAPS if (value := getattr(config, name, None))), None)


def configured_factors(lm: PreTrainedModel, near: float) -> Iterator[float]:
    """Yield the numbers of the configuration, and their reciprocals, that are within 0.1% of `near`."""
    for value in lm.config.get_text_config().to_dict().values():
        if isinstance(value, int | float) and not isinstance(value, bool) and value and math.isfinite(value):
            yield from (factor for factor in (value, 1.0 / value) if abs(factor - near) <= 1e-3 * abs(near))
