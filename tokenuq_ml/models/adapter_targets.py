"""The layers that the pipeline's own LoRA adapter is added to.

PEFT's `all-linear` is right for most models. Others need a list of names, which is `all-linear` without what LoRA with
dropout cannot adapt:

- **Experts that are fused parameters** (Mixtral, Qwen3-MoE, OLMoE): PEFT turns `all-linear` into `target_parameters`,
  which adapt experts and router but cannot drop features, so neither training with `lora_dropout` nor BALD would work.
- **Experts that are layers**: each gets some of the tokens, so masks cannot be drawn by example.
- **Layers whose weight is read directly** (`out_proj` and `dt_proj` of Mamba): the adapter would have no effect.
- **Routers and grouped layers that are called linear** (PhiMoE, DeepSeek-V4): their output is no product that LoRA
  could add to.
"""

import copy
from contextlib import ExitStack
from functools import partial

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tokenuq_ml.errors import InputError
from tokenuq_ml.models.flags import evaluation_mode

ALL_LINEAR = "all-linear"
TRIAL_TOKENS = 9


def adapter_targets(model: PreTrainedModel) -> str | list[str]:
    """Return PEFT's `target_modules`: `all-linear`, or names of layers.

    Takes a forward pass over nine tokens, to see which layers are called.

    Raises:
        InputError: the model has no layer that can be adapted.
    """
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    called = _called(model, linear)
    adapted = [name for name in linear if name in called and _takes_lora(model, name)]
    if not adapted:
        raise InputError(f"{type(model).__name__} has no linear layer that LoRA could adapt; use another model")
    return ALL_LINEAR if adapted == list(linear) and not _adapts_parameters(model, ALL_LINEAR) else sorted(adapted)


def frozen_matrices(model: PreTrainedModel) -> list[str]:
    """Return the kinds of matrices inside layers that no adapter reaches, such as `mlp.experts.down_proj`.

    Embeddings, the output layer and convolutions are not listed: they are frozen in every model.
    """
    targets, head = adapter_targets(model), model.get_output_embeddings()
    found: dict[str, None] = {}
    for path, module in model.named_modules():
        if module is head or isinstance(module, (nn.Embedding, nn.Conv1d)):
            continue
        if isinstance(module, (nn.Linear, Conv1D)) and (targets == ALL_LINEAR or path in targets):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            parts = f"{path}.{name}".removesuffix(".weight").split(".")
            layer = next((place for place, part in enumerate(parts) if part.isdigit()), None)
            if layer is not None and parameter.dim() >= 2 and min(parameter.shape[-2:]) > 1:
                found[".".join(part for part in parts[layer + 1 :] if not part.isdigit())] = None
    return list(found)


def check_adapter(model: PreTrainedModel) -> None:
    """Add the pipeline's adapter to a copy of the model without weights, so that refusals come before a training.

    Raises:
        InputError: PEFT cannot adapt the model.
    """
    targets = adapter_targets(model)
    with torch.device("meta"):
        bare = type(model)(copy.deepcopy(model.config))
    config = LoraConfig(r=1, lora_dropout=0.1, target_modules=targets, task_type="CAUSAL_LM")
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in bare.modules())
    try:
        get_peft_model(bare, config)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"PEFT cannot add a LoRA adapter to {type(model).__name__}: {error}") from None


@torch.no_grad()
def _called(model: PreTrainedModel, linear: dict[str, nn.Module]) -> set[str]:
    """Return the layers that a forward pass calls, and whose output is a product with their weight."""
    called: set[str] = set()
    ids_BT = torch.arange(TRIAL_TOKENS, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]

    def note(name: str, module: nn.Module, inputs: tuple, output) -> None:
        features = module.nf if isinstance(module, Conv1D) else module.out_features
        if isinstance(output, torch.Tensor) and inputs and output.shape == (*inputs[0].shape[:-1], features):
            called.add(name)

    with ExitStack() as stack:
        for name, module in linear.items():
            stack.callback(module.register_forward_hook(partial(note, name)).remove)
        stack.enter_context(evaluation_mode(model))
        model(input_ids=ids_BT, use_cache=False)
    return called


def _takes_lora(model: PreTrainedModel, name: str) -> bool:
    """Return whether PEFT adapts the layer as a layer, and its dropout can be drawn by example."""
    if ".experts." in name:
        return False
    try:
        # What PEFT asks of each layer that it is to adapt.
        BaseTuner._check_target_module_compatiblity(
            None, LoraConfig(target_modules=[name]), model, name.rpartition(".")[2]
        )
    except ValueError:
        return False
    return not _adapts_parameters(model, [name])


def _adapts_parameters(model: PreTrainedModel, targets: str | list[str]) -> bool:
    """Return whether PEFT would adapt fused parameters of experts for these `target_modules`.

    PEFT does so by name, so that adapters of transformers 4, where experts were layers, still load.
    """
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:
        # Earlier releases of PEFT adapt layers only.
        return False
    config = LoraConfig(target_modules=targets)
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:
        # "Target the other half of the fused parameter too": the layer was taken for one.
        return True
    return bool(config.target_parameters)
