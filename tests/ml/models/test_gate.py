"""The gate: which models are computed from hidden states, which by their own forward pass, and which are refused."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    FalconH1Config,
    HyperCLOVAXConfig,
    ModernBertDecoderConfig,
    RecurrentGemmaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.support.tiny_models import VOCAB, tiny_model, tiny_peft
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.head import LogitsHead
from tokenuq_ml.models.flags import restored_flags
from tokenuq_ml.models.forward import head_of, hidden_states
from tokenuq_ml.models.gate import output_path

IDS = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]])
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}


def from_config(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


def our_logits(model):
    head = head_of(model)
    return head.finish(head.product(hidden_states(model, {"input_ids": IDS})))


@torch.no_grad()
def agrees(model):
    return torch.allclose(our_logits(model), model(input_ids=IDS).logits.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_usual_models_are_computed_from_hidden_states(kind):
    model = tiny_model(kind)
    assert output_path(model).reason is None and agrees(model)


@pytest.mark.parametrize(
    "config",
    [
        FalconH1Config(**COMMON, num_key_value_heads=2, **MAMBA, lm_head_multiplier=0.25, head_dim=8),
        HyperCLOVAXConfig(**COMMON, num_key_value_heads=2, logits_scaling=0.5),
        RecurrentGemmaConfig(
            **{**COMMON, "num_hidden_layers": 3}, lru_width=32, attention_window_size=16, logits_soft_cap=3.0
        ),
    ],
    ids=["lm_head_multiplier", "multiplied by logits_scaling", "logits_soft_cap"],
)
def test_factors_and_caps_under_other_names_are_found(config):
    model = from_config(config)
    assert output_path(model).reason is None and agrees(model)


def test_a_factor_under_an_unknown_name_is_found():
    model = tiny_model("llama")
    model.config.favourite_number = 8.0
    plain = model.forward

    def forward(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = out.logits / 8.0
        return out

    model.forward = forward
    path = output_path(model)
    assert path.reason is None and path.scale == 1 / 8.0 and agrees(model)


def test_layers_between_decoder_and_head_are_left_to_the_model():
    model = from_config(ModernBertDecoderConfig(**COMMON))
    assert "are not those of its output layer" in output_path(model).reason
    assert isinstance(head_of(model), LogitsHead) and agrees(model)


def adapted_head():
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.no_grad()
def test_lora_on_the_head_takes_part():
    model = adapted_head()
    assert output_path(model).reason == "its output layer is a Linear with an adapter"
    adapted = our_logits(model)
    assert agrees(model)
    with model.disable_adapter():
        assert agrees(model) and not torch.allclose(our_logits(model), adapted, atol=1e-2)


def test_a_trained_copy_of_the_head_is_the_one_in_use():
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "modules_to_save" in n).mul_(2.0)
    assert not output_path(model).from_logits and agrees(model.eval())
    with model.disable_adapter():
        assert agrees(model)


def test_hooks_on_the_head_and_on_the_model_are_respected():
    model = tiny_model("llama").eval()
    handle = model.lm_head.register_forward_hook(lambda _, __, logits: logits * 3)
    assert output_path(model).from_logits and agrees(model)
    handle.remove()
    assert not output_path(model).from_logits and agrees(model)
    model.register_forward_hook(lambda _, __, out: setattr(out, "logits", out.logits - 1) or out)
    assert output_path(model).from_logits and agrees(model)


def test_flags_and_generators_stay_as_they_were():
    model = tiny_peft().train()
    next(p for p in model.parameters() if p.requires_grad).requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    state = torch.get_rng_state()
    output_path(model)
    assert flags == ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()])
    assert torch.equal(torch.get_rng_state(), state)


def both_directions():
    return from_config_class(BertLMHeadModel, BertConfig(**COMMON, is_decoder=False))


def from_config_class(kind, config):
    torch.manual_seed(0)
    return kind(config).eval()


def not_finite():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("inf")
    return model


def returning_tuples():
    model = tiny_model("llama")
    model.config.return_dict = False
    return model


REFUSED = {
    "tuples": (returning_tuples, "`config.return_dict` is False"),
    "encoder-decoder": (
        lambda: from_config_class(T5ForConditionalGeneration, T5Config(vocab_size=VOCAB, d_model=16, d_ff=16)),
        "T5ForConditionalGeneration is an encoder-decoder; use a decoder-only",
    ),
    "attends to later tokens": (
        both_directions,
        "BertLMHeadModel gives a text other logits in a padded batch than alo",
    ),
    "not finite": (not_finite, "LlamaForCausalLM gives logits that are not finite"),
    "prompt learning": (
        lambda: get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
        r"prompt-learning adapter \(PROMPT_TUNING\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_are_refused_by_name(case):
    build, message = REFUSED[case]
    with restored_flags(model := build()), pytest.raises(InputError, match=message):
        output_path(model)
