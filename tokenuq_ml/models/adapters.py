"""LoRA adapters through PEFT: add, attach, switch and freeze them, several on one base model."""

import json
from contextlib import contextmanager
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tokenuq_ml.config import LoraSpec
from tokenuq_ml.models.forward import causal_lm
from tokenuq_ml.models.lora_dropout import use_bit_mask_dropout
from tokenuq_ml.models.lora_linear import use_fused_lora
from tokenuq_ml.seeding import seed_torch


def add_adapter(model: PreTrainedModel, lora: LoraSpec, seed: int) -> PeftModel:
    """A fresh trainable LoRA adapter on every linear layer but the output head, seeded."""
    seed_torch(seed)
    config = lora_config(lora)
    # GPT-2's linear layers keep their weights transposed; an adapter that is said so loads without a warning.
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    return use_fused_lora(use_bit_mask_dropout(get_peft_model(model, config)))


def lora_config(lora: LoraSpec) -> LoraConfig:
    """The adapter in PEFT's terms."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )


def attach_adapter(model: PreTrainedModel | PeftModel, folder: str | Path, name: str) -> PeftModel:
    """A stored adapter, frozen; on a `PeftModel` the active adapter stays what it was.

    `PeftModel.set_adapter` would make the newcomer trainable and freeze the other, so the
    adapter is loaded in inference mode and the active one is set again.
    """
    if not isinstance(model, PeftModel):
        return _for_inference(
            PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=False).eval(), name
        )
    active, was_training = model.active_adapter, model.training
    model.load_adapter(folder, adapter_name=name, is_trainable=False)
    model.set_adapter(active)
    # Loading for inference puts the whole model into eval mode as well.
    return _for_inference(model, name).train(was_training)


def _for_inference(model: PeftModel, name: str) -> PeftModel:
    """Casts a frozen adapter to the base model's dtype once; autocast would do so in every forward pass."""
    dtype = causal_lm(model).dtype
    for path, parameter in model.named_parameters():
        if f".{name}." in path and not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return use_fused_lora(use_bit_mask_dropout(model))


def freeze_adapter(model: PeftModel) -> PeftModel:
    """The active adapter after its training: frozen, in the base model's dtype, ready for inference."""
    model.requires_grad_(False)
    return _for_inference(model, model.active_adapter).eval()


@contextmanager
def use_adapter(model: PeftModel, name: str | None):
    """Forward passes inside run under adapter `name` (None: the bare base model); no gradient is meant to flow.

    Afterwards the adapter that was active is so again, trainable or frozen as it was.
    """
    if name is None:
        with model.disable_adapter():
            yield
        return
    active = model.active_adapter
    trainable = any(p.requires_grad for path, p in model.named_parameters() if f".{active}." in path)
    model.base_model.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        model.base_model.set_adapter(active, inference_mode=not trainable)
        model.active_adapter = active


def adapter_digest(folder: str | Path) -> str:
    """Content hash of an adapter: its tensors and the settings that give them meaning."""
    from tokenuq_ml.tensor_digest import tensors_digest

    config = json.loads(Path(folder, "adapter_config.json").read_text())
    meaning = {key: config.get(key) for key in ("r", "lora_alpha", "lora_dropout", "use_rslora", "bias")}
    meaning["target_modules"] = sorted(config["target_modules"])
    return tensors_digest(Path(folder, "adapter_model.safetensors"), json.dumps(meaning, sort_keys=True))
