"""Where a model's weights are: on one device, partly offloaded by accelerate, or quantised.

An offloaded weight is on the device `meta`, without values, and accelerate's hooks fetch it while its module runs.
"""

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tokenuq_ml.errors import InputError
from tokenuq_ml.models.quantization import is_packed, is_quantised_layer

NARROW = (torch.bfloat16, torch.float16)


def device_of(model: PreTrainedModel | PeftModel) -> torch.device:
    """Return the device that the model takes its inputs on.

    `model.device` is `meta` if its first weight is offloaded.
    """
    if model.device.type != "meta":
        return model.device
    devices = (getattr(hook, "execution_device", None) for hook in _hooks(model))
    return next((torch.device(device) for device in devices if device is not None), model.device)


def changes_in_forward(model: nn.Module) -> bool:
    """Return whether a forward pass changes the model, so that two passes must not run at the same time.

    Offloaded weights come and go, 8-bit layers keep state, and some rotary frequencies follow the input's length.
    """
    if next(_hooks(model), None) is not None or next(_integer_modules(model), None) is not None:
        return True
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        kinds = kind.values() if isinstance(kind, dict) else [kind]
        if any("dynamic" in str(one) or one == "longrope" for one in kinds):
            return True
    return False


def shares_outliers(model: nn.Module) -> bool:
    """Return whether rounding depends on the batch: LLM.int8 keeps features exact that are large in any text."""
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


def check_adapters_in_memory(model: nn.Module) -> None:
    """Refuse adapters of offloaded layers, whose own weights PEFT creates without values.

    Raises:
        InputError: an adapter's weight is on the device `meta`.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta and (".lora_" in name or ".modules_to_save." in name):
            raise InputError(
                f"the adapter's weight {name} has no values, because its layer is offloaded (`device_map`); keep "
                "layers with adapters on a device, or load the model without offloading"
            )


def check_gradients(model: nn.Module) -> None:
    """Refuse to train a model whose layers give no gradients any more.

    Raises:
        InputError: a pass in eval mode has packed 4-bit weights for a CPU.
    """
    if any(is_packed(module) for module in model.modules() if is_quantised_layer(module)):
        raise InputError(
            "the 4-bit weights were packed for inference on a CPU by an earlier pass in eval mode, and bitsandbytes "
            "gives no gradients through them; load the model again and train it first, or on a GPU"
        )


def check_can_widen(model: nn.Module) -> None:
    """Refuse models that cannot be computed in float32 by widening their weights.

    Raises:
        InputError: a layer is quantised by another library than bitsandbytes, or weights in 16 bits are offloaded.
    """
    for name, module in _integer_modules(model):
        if not is_quantised_layer(module):
            raise InputError(
                f"BALD is computed in float32, and the layer {name} ({type(module).__name__}) is quantised; load the "
                "base model without quantisation, or quantised by bitsandbytes"
            )
        if is_packed(module):
            raise InputError(
                f"BALD is computed in float32, and the 4-bit weights of {name} were packed for inference on a CPU by "
                "an earlier pass in eval mode, which has rounded their scales; load the model again and measure first"
            )
    for name, parameter in model.named_parameters():
        if parameter.is_meta and parameter.dtype in NARROW:
            raise InputError(
                f"BALD is computed in float32, and the weight {name} in {parameter.dtype} is offloaded (`device_map`); "
                "load the model in float32 (dtype=torch.float32) or without offloading"
            )


def _hooks(model: nn.Module) -> Iterator:
    """Yield accelerate's hooks, which move inputs and weights."""
    return (hook for module in model.modules() if (hook := vars(module).get("_hf_hook")) is not None)


def _integer_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of each module with integer weights."""
    for name, module in model.named_modules():
        parameters = (parameter for parameter in module._parameters.values() if parameter is not None)
        if any(not (parameter.is_floating_point() or parameter.is_complex()) for parameter in parameters):
            yield name, module
