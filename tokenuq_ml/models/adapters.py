"""What is trained of a model: adapters through PEFT (LoRA, DoRA), or all of its weights (`full_weights.py`).

Added, attached, switched, frozen and stored, several on one base model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.functional import set_adapter
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from torch import linalg
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tokenuq_ml.models.adapter_kinds import active_adapters, adapter_modules
from tokenuq_ml.models.adapter_targets import ALL_LINEAR, adapter_targets
from tokenuq_ml.models.flags import restored_flags
from tokenuq_ml.models.forward import causal_lm
from tokenuq_ml.models.full_weights import (
    attach_weights,
    has_full_weights,
    is_full_model,
    put_weights,
    save_weights,
    use_weights,
    weights_digest,
)
from tokenuq_ml.models.lora_dropout import use_bit_mask_dropout
from tokenuq_ml.models.lora_linear import use_fused_lora
from tokenuq_ml.seeding import seed_torch
from tokenuq_ml.tensor_digest import tensors_digest

if TYPE_CHECKING:
    from tokenuq_ml.config import LoraSpec, TrainSpec

TrainedModel = PeftModel | PreTrainedModel
"""A model with adapters, or one whose own weights were trained."""
MAGNITUDE = "lora_magnitude_vector"
"""DoRA's factor of each row of a weight."""


def add_trained_weights(model: PreTrainedModel, train: TrainSpec, seed: int) -> TrainedModel:
    """Return the model with what a study trains: a new adapter, or (adapter: none) its own weights.

    Args:
        model: The base model; changed in place.
        train: The kind of adapter, and its settings.
        seed: Decides the initial weights of an adapter. Also seeds torch's global generators.
    """
    if train.adapter != "none":
        return add_adapter(model, train.lora, seed, use_dora=train.adapter == "dora")
    seed_torch(seed)
    return model.requires_grad_(True)


def add_adapter(model: PreTrainedModel, lora: LoraSpec, seed: int, use_dora: bool = False) -> PeftModel:
    """Add a new trainable LoRA adapter to every linear layer except the output head (`adapter_targets.py`).

    Args:
        model: The base model; changed in place.
        lora: Rank, alpha and dropout.
        seed: Decides the initial weights. Also seeds torch's global generators.
        use_dora: Whether it is a DoRA adapter (arXiv 2402.09353), which also scales each row of a weight.
    """
    seed_torch(seed)
    config = lora_config(lora, adapter_targets(model), use_dora)
    # GPT-2's linear layers store their weights transposed; PEFT warns if the adapter's config does not say so.
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    return use_fused_lora(use_bit_mask_dropout(get_peft_model(model, config)))


def lora_config(lora: LoraSpec, targets: str | list[str] = ALL_LINEAR, use_dora: bool = False) -> LoraConfig:
    """Return PEFT's configuration of an adapter of the layers `targets`."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        bias="none",
        use_dora=use_dora,
        task_type="CAUSAL_LM",
    )


def attach_adapter(model: PreTrainedModel | PeftModel, folder: str | Path, name: str) -> TrainedModel:
    """Load a stored adapter, frozen. On a `PeftModel`, the active adapters stay active, and all flags what they are.

    Args:
        model: A base model, or one that has adapters already; changed in place.
        folder: Folder that PEFT saved the adapter in; or of a complete model, whose weights take those of `model`'s
            place.
        name: Name of the adapter, or of the weights, in the returned model.
    """
    if is_full_model(folder):
        return attach_weights(causal_lm(model), folder, name)
    if not isinstance(model, PeftModel):
        loaded = PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=False)
        return _prepare_for_inference(loaded.eval(), name)
    # Loading puts the complete model into eval mode, and changes what is trainable.
    with restored_flags(model), _restored_adapters(model):
        model.load_adapter(folder, adapter_name=name, is_trainable=False)
    return _prepare_for_inference(model, name)


def put_adapter_weights(model: PeftModel | PreTrainedModel, name: str, folder: str | Path | None) -> None:
    """Replace the weights of an adapter by those of a stored one of the same shape.

    Args:
        model: With the adapter; its modes and flags stay as they are.
        name: Name of the adapter, or of a complete set of weights, in the model.
        folder: Folder that the weights were saved in; None: B becomes zero, so that the adapter changes nothing, as
            before its training; of a complete set, the base model's weights.
    """
    if has_full_weights(model):
        put_weights(model, name, folder)
        return
    if folder is not None:
        set_peft_model_state_dict(model, load_file(Path(folder, "adapter_model.safetensors")), adapter_name=name)
        return
    for path, parameter in model.named_parameters():
        if f"lora_B.{name}" in path:
            parameter.data.zero_()
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in getattr(module, MAGNITUDE, {}):
            weight_OI = dequantize_module_weight(module.get_base_layer())
            norm_O = linalg.vector_norm(weight_OI.float(), dim=0 if module.fan_in_fan_out else 1)
            module.lora_magnitude_vector[name].weight.data.copy_(norm_O)


def freeze_adapter(model: PeftModel) -> PeftModel:
    """Freeze the active adapter after training: no gradients, eval mode, the base model's dtype."""
    model.requires_grad_(False)
    return _prepare_for_inference(model, model.active_adapter).eval()


def _prepare_for_inference(model: PeftModel, name: str) -> PeftModel:
    """Cast a frozen adapter to the base model's dtype once; autocast would do so in every forward pass.

    Not DoRA's factors: what training changes of them is below what bfloat16 rounds off.
    """
    dtype = causal_lm(model).dtype
    for path, parameter in model.named_parameters():
        if f".{name}." in path and not parameter.requires_grad and MAGNITUDE not in path:
            parameter.data = parameter.data.to(dtype)
    return use_fused_lora(use_bit_mask_dropout(model))


@contextmanager
def use_adapter(model: PeftModel | PreTrainedModel, name: str | None) -> Iterator[None]:
    """Run forward passes inside the context with adapter `name`, or with the base model alone if None.

    Or with a complete set of weights under that name (`attach_adapter`).

    For inference only. Afterwards the active adapters, the mode of each module and `requires_grad` of each parameter
    are what they were: PEFT would make all parameters of the active adapter trainable.

    Args:
        model: With adapters that are neither merged nor disabled, by PEFT or by transformers' `add_adapter`.
        name: An adapter of the model.
    """
    if has_full_weights(model):
        with use_weights(model, name):
            yield
        return
    with restored_flags(model), _restored_adapters(model):
        if name is None:
            with _disabled_adapters(model):
                yield
        else:
            _activate(model, name)
            yield


@contextmanager
def _disabled_adapters(model: PeftModel | PreTrainedModel) -> Iterator[None]:
    """Disable all adapters inside the context.

    Not by `PeftModel.disable_adapter`, which reports on every layer each time, which takes as long; nor by
    transformers' `disable_adapters`, after which `enable_adapters` leaves `modules_to_save` disabled (5.23).
    """
    modules = [module for _, module in adapter_modules(model)]
    try:
        for module in modules:
            module.enable_adapters(False)
        yield
    finally:
        for module in modules:
            module.enable_adapters(True)


def _activate(model: PeftModel | PreTrainedModel, names: str | list[str]) -> None:
    """Activate adapters: `PeftModel.set_adapter` takes one name, and transformers' fails where a layer lacks it."""
    if isinstance(model, PeftModel):
        model.base_model.set_adapter(names)
    else:
        set_adapter(model, names)


@contextmanager
def _restored_adapters(model: PeftModel | PreTrainedModel) -> Iterator[None]:
    """Activate afterwards the adapters that are active now; flags are left as PEFT then sets them."""
    before = active_adapters(model)
    try:
        yield
    finally:
        if active_adapters(model) != before:
            _activate(model, before)


def save_adapter(model: PeftModel | PreTrainedModel, folder: str | Path) -> None:
    """Save the active adapter in PEFT's format, the same bytes for the same adapter; without one, the model.

    PEFT writes sets, such as the target modules, in an order that differs between processes; here they are sorted. The
    path of the base model stays as it is: `AutoPeftModel` loads the model from it.
    """
    if not isinstance(model, PeftModel):
        save_weights(model, folder)
        return
    model.save_pretrained(folder, selected_adapters=[model.active_adapter])
    sets = {name for name, value in vars(model.peft_config[model.active_adapter]).items() if isinstance(value, set)}
    path = Path(folder, "adapter_config.json")
    settings = json.loads(path.read_text())
    settings |= {name: sorted(settings[name]) for name in sets & settings.keys()}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True))


def adapter_settings(folder: str | Path) -> dict[str, Any]:
    """Return the settings of a stored adapter that change the effect of its tensors; of a complete model, none."""
    if is_full_model(folder):
        return {}
    config = json.loads(Path(folder, "adapter_config.json").read_text())
    settings = {key: config.get(key) for key in ("r", "lora_alpha", "lora_dropout", "use_rslora", "bias")}
    dora = {"use_dora": True} if config.get("use_dora") else {}
    return settings | dora | {"target_modules": sorted(config["target_modules"])}


def adapter_digest(folder: str | Path) -> str:
    """Return the content hash of a stored adapter: its tensors, and the settings that change their effect.

    Of a complete model: its tensors.
    """
    if is_full_model(folder):
        return weights_digest(folder)
    settings = json.dumps(adapter_settings(folder), sort_keys=True)
    return tensors_digest(Path(folder, "adapter_model.safetensors"), settings)
