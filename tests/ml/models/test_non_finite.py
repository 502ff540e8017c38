"""The first module of a pass whose output is not finite is found, and the gate names it."""

import math

import pytest
import torch

from tests.support.tiny_models import tiny_model, tiny_peft
from tokenuq_ml.errors import NonFiniteError
from tokenuq_ml.models.forward import hidden_states
from tokenuq_ml.models.gate import output_path
from tokenuq_ml.models.non_finite import first_non_finite_module

IDS = {"input_ids": torch.arange(3, 9)[None]}


def found(model):
    return first_non_finite_module(model, lambda: hidden_states(model, IDS))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_a_model_without_nan_has_none_and_keeps_no_hooks(kind):
    model = tiny_model(kind)
    assert found(model) is None
    assert not any(module._forward_hooks for module in model.modules())


def test_the_innermost_module_comes_first_with_its_weights():
    model = tiny_model()
    output_path(model)
    model.model.layers[1].mlp.up_proj.weight[2, 3] = math.inf
    text = "model.layers.1.mlp.up_proj (Linear), whose weight has 1 of 1536 values that are not finite"
    assert found(model) == text
    model.model.layers[0].post_attention_layernorm.register_forward_hook(lambda module, args, out: out / 0)
    assert found(model) == "model.layers.0.post_attention_layernorm (LlamaRMSNorm)"


def test_of_an_adapter_the_layer_is_named_as_in_the_peft_model():
    model = tiny_peft()
    output_path(model)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    layer.lora_A[model.active_adapter].weight.data[0] = math.nan
    text = found(model)
    assert text.startswith("base_model.model.model.layers.0.self_attn.q_proj")
    assert "weight has 32 of 128 values that are not finite" in text


def test_the_gate_names_the_module_of_a_damaged_model():
    model = tiny_model()
    model.model.layers[0].self_attn.o_proj.weight[:, 0] = math.nan
    with pytest.raises(
        NonFiniteError, match=r"not finite .NaN or Inf., first in .* model\.layers\.0\.self_attn\.o_proj"
    ):
        output_path(model)
    model = tiny_model("gpt2")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * math.inf)
    with pytest.raises(NonFiniteError, match=r"first in the output of lm_head \(Linear\), whose weight has"):
        output_path(model)
