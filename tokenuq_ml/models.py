"""Base models and their LoRA adapters: load fast, one base with many adapters.

Knows how to reach a model's decoder and its output head. Does not know where weights come from
(`conversion.py`), does not turn hidden states into logits (`kernels.py`) and does not train.
"""

import inspect
import json
import platform
import types
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as hf_logging

from tokenuq_ml.kernels import Head
from tokenuq_ml.lora_dropout import use_word_dropout
from tokenuq_ml.lora_linear import use_fused_lora
from tokenuq_ml.specs import LoraSpec

hf_logging.disable_progress_bar()


@dataclass(frozen=True)
class Numerics:
    """Where and how numbers are computed, and why so: recorded with every result."""

    device: str
    dtype: torch.dtype
    threads: int
    reason: str

    def fields(self) -> dict[str, str | int]:
        """Plain values, for metadata and checkpoint keys."""
        return {
            "device": self.device,
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "precision_reason": self.reason,
        }

    def autocast(self):
        """Mixed precision around a forward pass; does nothing in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.split(":")[0], dtype=self.dtype)


def resolve_numerics(precision: str = "auto") -> Numerics:
    """Device and dtype for `precision` (auto, float32, bfloat16).

    On a CPU `auto` goes by the processor's capability flags, never by a timing, so that
    the same machine always resolves to the same choice.
    """
    if torch.cuda.is_available():
        device, fast, reason = "cuda", torch.cuda.is_bf16_supported(), "cuda"
    elif torch.backends.mps.is_available():
        device, fast, reason = "mps", False, "mps"
    else:
        flags = {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "amx": torch.cpu._is_amx_tile_supported()}
        present = [name for name, there in flags.items() if there]
        device, fast = "cpu", bool(present)
        reason = f"{platform.machine()} flags: {', '.join(present) or 'no bfloat16 instructions'}"
    if precision == "auto":
        dtype = torch.bfloat16 if fast else torch.float32
    else:
        dtype, reason = getattr(torch, precision), "set in the study"
    return Numerics(device, dtype, torch.get_num_threads(), reason)


def load_tokenizer(folder: str | Path):
    """The tokenizer that `convert` wrote."""
    return AutoTokenizer.from_pretrained(folder)


def load_model(folder: str | Path, precision: str = "auto") -> tuple[PreTrainedModel, Numerics]:
    """The base model, frozen and in eval mode, in the resolved dtype on the resolved device."""
    numerics = resolve_numerics(precision)
    # Probabilities far below float32's normal range would slow every softmax many times over.
    torch.set_flush_denormal(True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=numerics.dtype)
    model.requires_grad_(False)
    return model.to(numerics.device).eval(), numerics


def add_adapter(model: PreTrainedModel, lora: LoraSpec, seed: int) -> PeftModel:
    """A fresh trainable LoRA adapter on every linear layer but the output head, seeded."""
    torch.manual_seed(seed)
    config = lora_config(lora)
    # GPT-2's linear layers keep their weights transposed; an adapter that is said so loads without a warning.
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    return use_fused_lora(use_word_dropout(get_peft_model(model, config)))


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
    return use_fused_lora(use_word_dropout(model))


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


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model inside any PEFT wrapping."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def head_of(model: PreTrainedModel | PeftModel) -> Head:
    """The output head, with soft-capping and scaling where the architecture has them.

    Gemma-2 soft-caps its final logits, Cohere multiplies them, Granite divides them; a
    loss that forgets it optimises another objective.
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
    model: PreTrainedModel | PeftModel, inputs: dict[str, torch.Tensor], numerics: Numerics | None = None
) -> torch.Tensor:
    """`hidden_BTD` after the final norm: all but the head of a forward pass over `inputs` (`Batch.model_inputs`)."""
    decoder = getattr(causal_lm(model), causal_lm(model).base_model_prefix)
    # Where all weights have the dtype already, autocast would only look at every operation, and round what is
    # float32 on purpose.
    casts = numerics is not None and numerics.dtype != torch.float32 and _dtypes(model) != {numerics.dtype}
    with numerics.autocast() if casts else nullcontext():
        return decoder(**inputs, use_cache=False).last_hidden_state


_kept_dtypes: WeakKeyDictionary[PreTrainedModel, set[torch.dtype]] = WeakKeyDictionary()


def _dtypes(model: PreTrainedModel | PeftModel) -> set[torch.dtype]:
    """Those of the model's weights, its adapters' included."""
    kept = _kept_dtypes.get(causal_lm(model))
    return kept if kept is not None else {parameter.dtype for parameter in causal_lm(model).parameters()}


@contextmanager
def unchanging_dtypes(model: PreTrainedModel | PeftModel):
    """Inside, the dtypes of the model's weights are looked at once: a thousand tensors before each pass take long."""
    lm = causal_lm(model)
    before = _kept_dtypes.get(lm)
    _kept_dtypes[lm] = _dtypes(model)
    try:
        yield
    finally:
        if before is None:
            del _kept_dtypes[lm]


@torch.no_grad()
def packing_is_exact(model: PreTrainedModel | PeftModel, numerics: Numerics) -> bool:
    """Whether sequences packed into one row come out as they do alone, tried on three short ones.

    Attention implementations differ in whether they read the ends of sequences off the position ids;
    one that does not lets sequences see each other without a word.
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
def forward_to_tokens(model: PreTrainedModel | PeftModel):
    """Inside, `model(input_ids=..., token_function=f)` returns `f(hidden_BTD, head)`; without `f` all is as it was.

    The head is used within the wrapped model's own forward: what wraps a model for many
    devices (DDP's gradient hooks, FSDP's gathering of shards) acts only there.
    """
    lm = causal_lm(model)
    plain = lm.forward

    def forward(self, *args, token_function=None, **inputs):
        if token_function is None:
            return plain(*args, **inputs)
        return token_function(hidden_states(self, inputs), head_of(self))

    # Trainer reads off the signature which of a dataset's columns the model wants.
    wanted = inspect.signature(plain)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = wanted.replace(parameters=[own, *wanted.parameters.values()])

    lm.forward = types.MethodType(forward, lm)
    try:
        yield model
    finally:
        del lm.forward


def adapter_digest(folder: str | Path) -> str:
    """Content hash of an adapter: its tensors and the settings that give them meaning."""
    from tokenuq_ml.tensors import tensors_digest

    config = json.loads(Path(folder, "adapter_config.json").read_text())
    meaning = {key: config.get(key) for key in ("r", "lora_alpha", "lora_dropout", "use_rslora", "bias")}
    meaning["target_modules"] = sorted(config["target_modules"])
    return tensors_digest(Path(folder, "adapter_model.safetensors"), json.dumps(meaning, sort_keys=True))
