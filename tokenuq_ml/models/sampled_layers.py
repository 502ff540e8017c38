"""Which layers of an adapter Monte-Carlo dropout samples: all active linear ones, or the model is refused.

BALD is about the adapter's weights, which are sampled by dropping the input features of LoRA's linear layers. An active
layer that nothing is dropped in would be held fixed: with only such layers BALD would be 0 everywhere, and with some of
them it would be the uncertainty of a part of the adapter. LoRA on embeddings is the exception: it has no input
features, so PEFT's own dropout leaves it fixed too, and it takes part as it is next to linear layers that are sampled.
"""

from collections import Counter
from functools import cache

from peft import PeftModel
from peft.import_utils import is_bnb_available
from peft.tuners.adalora import SVDLinear
from peft.tuners.lora import Embedding, Linear, LoraLayer
from torch import nn
from transformers import PreTrainedModel

from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapter_kinds import (
    active_adapters,
    adapter_configs,
    adapter_modules,
    check_forward,
    check_in_use,
)

SAMPLED_KINDS = ("LORA", "ADALORA")
DORA = "DoraLinearVariant"
"""The variant that applies its dropout only if `training` of the layer is set."""
SAMPLED_VARIANTS = (DORA, "MiCALinearVariant", "VeloraLinearVariant", "BdLoraLinearVariant", "KasaLinearVariant")
"""Variants of LoRA's linear layer that apply its dropout. By name, because earlier releases of PEFT lack some."""


@cache
def sampled_kinds() -> tuple[type[nn.Module], ...]:
    """Return PEFT's classes of layers that drop the features of their input.

    Those on quantised layers exist only where bitsandbytes is installed.
    """
    quantised: tuple[type[nn.Module], ...] = ()
    if is_bnb_available():
        from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt

        quantised = (Linear4bit, Linear8bitLt)
    return (Linear, SVDLinear, *quantised)


def sampled_layers(model: PeftModel | PreTrainedModel) -> list[tuple[LoraLayer, str]]:
    """Return layer and adapter name of each LoRA dropout that a forward pass uses, in the order of the modules.

    Raises:
        InputError: the model has no active adapter, or one with an active layer whose features are not dropped.
    """
    check_forward(model)
    check_in_use(model, "BALD")
    configs = adapter_configs(model)
    for name in active_adapters(model):
        kind = configs[name].peft_type.value
        if kind not in SAMPLED_KINDS:
            raise InputError(
                f"adapter {name!r} is {kind}, which has no LoRA layer to drop features of, so BALD would be 0 "
                "everywhere; measure it under a LoRA adapter"
            )
    found: list[tuple[LoraLayer, str]] = []
    fixed: Counter[str] = Counter()
    held: Counter[str] = Counter()
    sampled = sampled_kinds()
    for path, module in adapter_modules(model):
        for name in module.active_adapters:
            if name not in module._get_available_adapters():
                continue
            if isinstance(module, sampled) and _is_sampled(module, name):
                found.append((module, name))
            elif isinstance(module, Embedding):
                held[_describe(module, name)] += 1
            elif ".token_adapter" not in path:
                fixed[_describe(module, name)] += 1
    if not found:
        fixed += held
    if fixed or not found:
        kinds = ", ".join(f"{count} of {kind}" for kind, count in fixed.items()) or "no layer at all"
        raise InputError(
            f"BALD samples dropout of LoRA's linear layers, and the active adapters have {kinds}, which it does not "
            f"sample: it would be the uncertainty of {'a part of the adapter' if found else 'nothing'}; measure it "
            "under an adapter of LoRA's plain linear layers alone (target_modules)"
        )
    return found


def drops_only_in_training(layer: LoraLayer, name: str) -> bool:
    """Return whether the layer applies its dropout only if its own `training` is set: DoRA's."""
    return type(layer.lora_variant.get(name)).__name__ == DORA


def _is_sampled(layer: LoraLayer, name: str) -> bool:
    variant = layer.lora_variant.get(name)
    return variant is None or type(variant).__name__ in SAMPLED_VARIANTS


def _describe(module: nn.Module, name: str) -> str:
    """Return the kind of a layer as PEFT's users know it: `lora.Embedding`, `modules_to_save`, a variant."""
    if isinstance(module, LoraLayer) and name in module.lora_variant:
        return type(module.lora_variant[name]).__name__
    known = {"ModulesToSaveWrapper": "modules_to_save", "TrainableTokensWrapper": "trainable_token_indices"}
    kind = type(module)
    return known.get(kind.__name__) or f"{kind.__module__.split('.')[-2]}.{kind.__name__}"
