"""Every kind of adapter of the installed PEFT, and LoRA's options, each on a tiny Llama."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, LoraGAConfig, MontecloraConfig
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

TARGETS = ["q_proj", "v_proj"]
VOCABULARY = 400


def tiny_llama(tie: bool = False, bias: bool = False, vocabulary: int = VOCABULARY, seed: int = 0) -> LlamaForCausalLM:
    """Return a random one-layer model, frozen and in eval mode, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=tie,
        attention_bias=bias,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        # Biases start at 0, which hides them.
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


KINDS: dict[str, dict] = {
    "ADALORA": {"target_modules": TARGETS, "total_step": 10, "init_r": 4, "target_r": 2},
    "ADAMSS": {"target_modules": TARGETS},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "BEFT": {"target_modules": ["v_proj"]},
    "BOFT": {"target_modules": TARGETS, "boft_block_size": 4},
    "C3A": {"target_modules": TARGETS, "block_size": 8},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {"cpt_token_ids": [3, 4], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "DEFT": {"target_modules": TARGETS, "r": 4},
    "DELORA": {"target_modules": TARGETS, "r": 4},
    "FOURIERFT": {"target_modules": TARGETS, "n_frequency": 10},
    "FROD": {"target_modules": TARGETS},
    "GLORA": {"target_modules": TARGETS, "r": 4},
    "GRALORA": {"target_modules": TARGETS, "r": 4},
    "HIRA": {"target_modules": TARGETS, "r": 4},
    "HRA": {"target_modules": TARGETS, "r": 4},
    "IA3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LILY": {"target_modules": TARGETS, "r": 4},
    "LN_TUNING": {"target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]},
    "LOHA": {"target_modules": TARGETS, "r": 4},
    "LOKR": {"target_modules": TARGETS, "r": 4},
    "LORA": {"target_modules": TARGETS, "r": 4},
    "MISS": {"target_modules": TARGETS, "r": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4, "num_tasks": 2},
    "OFT": {"target_modules": TARGETS, "oft_block_size": 4, "r": 0},
    "OSF": {"target_modules": TARGETS},
    "PEANUT": {"target_modules": TARGETS},
    "POLY": {"target_modules": TARGETS, "r": 4, "n_tasks": 2, "n_skills": 2, "n_splits": 2},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "PSOFT": {"target_modules": TARGETS, "r": 4},
    "PVERA": {"target_modules": TARGETS, "r": 4},
    "P_TUNING": {"num_virtual_tokens": 4},
    "RANDLORA": {"target_modules": TARGETS, "r": 4},
    "ROAD": {"target_modules": TARGETS, "group_size": 8},
    "SHADOW": {},
    "SHIRA": {"target_modules": TARGETS, "r": 4},
    "SUPERTUNING": {"target_modules": TARGETS},
    "TINYLORA": {"target_modules": TARGETS},
    "TRAINABLE_TOKENS": {"token_indices": [5, 6, 7]},
    "UNILORA": {"target_modules": TARGETS, "r": 4},
    "VBLORA": {"target_modules": TARGETS, "r": 4, "num_vectors": 32, "vector_length": 8},
    "VERA": {"target_modules": TARGETS, "r": 4},
    "WAVEFT": {"target_modules": TARGETS, "n_frequency": 10},
    "XLORA": {},
}
"""Arguments of each kind's configuration."""


def add_native_adapter(model: PreTrainedModel, config: LoraConfig, name: str = "default") -> None:
    """Add an adapter by transformers' own integration; skip the test if it asks for a later PEFT than the installed."""
    try:
        model.add_adapter(config, name)
    except ValueError as error:
        if "version of PEFT" in str(error):
            pytest.skip(str(error))
        raise


def tiny_adapter(kind: str, base: PreTrainedModel | None = None, **options) -> PeftModel:
    """Return a tiny model with a fresh adapter.

    Args:
        kind: a name of `PeftType`.
        base: the model that is adapted; default: `tiny_llama()`.
        **options: further arguments of the kind's configuration.
    """
    base = tiny_llama() if base is None else base
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]](**{"task_type": "CAUSAL_LM", **KINDS[kind], **options})
    torch.manual_seed(1)
    # Some kinds print progress bars.
    with contextlib.redirect_stderr(io.StringIO()):
        return get_peft_model(base, config)


def trained(model: PeftModel, std: float = 0.2) -> PeftModel:
    """Change all trainable parameters, as a training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * std
    return model


def _tiny_xlora() -> PeftModel:
    with tempfile.TemporaryDirectory() as folder:
        tiny_adapter("LORA").save_pretrained(folder)
        base = tiny_llama()
        base.config.use_cache = False
        return tiny_adapter("XLORA", base, hidden_size=32, adapters={"0": folder, "1": folder})


def _tiny_mixtral() -> MixtralForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.3}
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(vocab_size=VOCABULARY, **sizes)).eval().requires_grad_(False)


def _two_adapters() -> PeftModel:
    model = tiny_adapter("LORA")
    model.add_adapter("second", LoraConfig(r=2, target_modules=["v_proj", "o_proj"], task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "second"])
    return model


def _native(**options) -> LlamaForCausalLM:
    model = tiny_llama()
    torch.manual_seed(1)
    add_native_adapter(model, LoraConfig(**{**KINDS["LORA"], **options}))
    return model


@dataclass(frozen=True)
class Case:
    """A model with a fresh adapter, and its base model."""

    make: Callable[[], torch.nn.Module]
    base: Callable[[], PreTrainedModel] = tiny_llama


def _lora(base: Callable[[], PreTrainedModel] = tiny_llama, **options) -> Case:
    return Case(lambda: tiny_adapter("LORA", base(), **options), base)


_biased = partial(tiny_llama, bias=True)
_tied = partial(tiny_llama, tie=True)

CASES: dict[str, Case] = {kind: Case(partial(tiny_adapter, kind)) for kind in KINDS} | {
    "XLORA": Case(_tiny_xlora),
    "SHADOW: auxiliary_loss_weight=0": Case(partial(tiny_adapter, "SHADOW", auxiliary_loss_weight=0.0)),
    "use_rslora": _lora(use_rslora=True),
    "use_dora": _lora(use_dora=True, lora_dropout=0.1, target_modules="all-linear"),
    "lora_bias": _lora(_biased, lora_bias=True),
    "use_bdlora": _lora(use_bdlora=BdLoraConfig(["q_proj"], ["v_proj"], 2)),
    "velora_config": _lora(velora_config={"num_groups": 4}),
    "monteclora_config": _lora(monteclora_config=MontecloraConfig()),
    "kasa_config": _lora(kasa_config=KasaConfig()),
    "alora_invocation_tokens": _lora(alora_invocation_tokens=[5, 6]),
    "layer_replication": _lora(layer_replication=[[0, 1], [0, 1]]),
    "target_parameters": _lora(target_modules=[], target_parameters=["q_proj.weight"]),
    "target_parameters: experts": _lora(
        _tiny_mixtral, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    ),
    "target_modules: lm_head": _lora(target_modules=["q_proj", "lm_head"]),
    "target_modules: lm_head, tied": _lora(_tied, target_modules=["q_proj", "lm_head"]),
    "target_modules: lm_head alone": _lora(target_modules=["lm_head"]),
    "target_modules: embed_tokens": _lora(target_modules=["q_proj", "embed_tokens"]),
    "target_modules: embed_tokens, tied": _lora(_tied, target_modules=["q_proj", "embed_tokens"]),
    "ensure_weight_tying": _lora(_tied, target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True),
    "modules_to_save": _lora(modules_to_save=["lm_head", "embed_tokens"]),
    "modules_to_save, tied": _lora(_tied, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "trainable_token_indices": _lora(trainable_token_indices=[5, 6]),
    "trainable_token_indices, tied": _lora(_tied, trainable_token_indices=[5, 6]),
    'bias="all"': _lora(_biased, bias="all"),
    'bias="lora_only"': _lora(_biased, bias="lora_only"),
    "two active adapters": Case(_two_adapters),
    "model.add_adapter": Case(_native),
    "model.add_adapter: modules_to_save": Case(partial(_native, modules_to_save=["lm_head"])),
}
"""Each kind, and each option of LoRA that changes what is computed, by the name in docs/library.md."""


def _base_for(init: object) -> LlamaForCausalLM:
    """Return a base model with what some initialisations read off its layers, as PEFT's preprocessing leaves it."""
    model = tiny_llama()
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] not in TARGETS:
            continue
        if init == "lora_ga":
            layer._peft_loraga_grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(3))
        if init == "corda":
            u, s, vh = torch.linalg.svd(layer.weight.detach())
            layer.eigens = SimpleNamespace(U_WC=u[:, :4].clone(), S_WC=s[:4].clone(), V_WC=vh[:4].T.clone())
    return model


def _as_if_loftq() -> PeftModel:
    """Return an adapter that says that it was made with LoftQ, which PEFT computes on an accelerator only."""
    model = tiny_adapter("LORA")
    model.peft_config["default"].init_lora_weights = "loftq"
    return model


def _init(init: object, **options) -> Case:
    return Case(lambda: tiny_adapter("LORA", _base_for(init), init_lora_weights=init, **options))


INITIALISATIONS: dict[object, Case] = {
    init: _init(init) for init in (True, False, "gaussian", "eva", "olora", "pissa", "corda", "orthogonal", "mica")
} | {
    "pissa_niter_[number of iters]": _init("pissa_niter_2"),
    "loftq": Case(_as_if_loftq),
    "lora_ga": _init("lora_ga", lora_ga_config=LoraGAConfig()),
}
"""Each value of `init_lora_weights`."""
