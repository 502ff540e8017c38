"""Fast forward passes equal Transformers' own, and leave every other call and the model itself alone."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tests.support.zoo import tiny_zoo_model
from tokenuq_ml.config import LoraSpec
from tokenuq_ml.data.batching import collate, length_batches
from tokenuq_ml.kernels.scores import token_losses
from tokenuq_ml.models import blocked_attention
from tokenuq_ml.models.adapters import add_adapter, freeze_adapter, use_adapter
from tokenuq_ml.models.fast_inference import fast_inference
from tokenuq_ml.models.forward import causal_lm, head_of, hidden_states
from tokenuq_ml.models.numerics import Numerics

BFLOAT16 = Numerics("cpu", torch.bfloat16, 1, "test")
LLAMA_LIKE = ["llama", "mistral", "qwen2", "qwen3", "gemma"]
OTHERS = ["gemma2", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox", "olmo2", "granite", "smollm3"]


def model_of(kind: str, dtype: torch.dtype = torch.float32, width: int = 32, **config):
    """A random two-layer model of any architecture; weights that a norm's ones or zeros would hide are random too."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4 if kind in ("phi", "gpt2", "gpt_neox") else 2, "vocab_size": 97}
    sizes |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.2}
    if kind in ("qwen3", "gemma", "gemma2", "gemma3_text"):
        sizes["head_dim"] = width // 4
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **config))
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
            parameter.data += "norm" in name and "gemma" not in kind
    return model.requires_grad_(False).to(dtype).eval()


def batches(length: int = 80):
    """One padded batch, longer than a block of queries, and one of short texts."""
    return [collate(examples(3)), collate([_long(length), _long(length - 7)])]


def _long(length: int):
    example = examples(1)[0]
    ids = torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    return type(example)(f"long/{length}", "toy", "train", ids, [False] + [True] * (length - 1))


@torch.no_grad()
def states(model, numerics=FLOAT32):
    return torch.cat([b.predicting(hidden_states(model, b.model_inputs, numerics)) for b in batches()])


@torch.no_grad()
def losses(model, numerics):
    """Return the loss of every response token."""
    return torch.cat(
        [
            token_losses(b.predicting(hidden_states(model, b.model_inputs, numerics)), head_of(model), b.label_N)
            for b in batches(150)
        ]
    ).double()


def own_forwards(model):
    return [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("kind", LLAMA_LIKE + OTHERS)
def test_float32_is_what_transformers_computes(kind):
    model = model_of(kind)
    expected = states(model)
    with fast_inference(model):
        got = states(model)
    assert (got - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("kind", LLAMA_LIKE)
def test_known_architectures_are_fast_inside_and_restored_afterwards(kind):
    model = model_of(kind)
    with fast_inference(model):
        assert set(model.model.layers) <= set(own_forwards(model))
        assert blocked_attention.is_used_by(model)
        fast = own_forwards(model)
        with fast_inference(model):
            pass
        assert own_forwards(model) == fast
    assert not own_forwards(model) and not blocked_attention.is_used_by(model)


@pytest.mark.parametrize("kind", LLAMA_LIKE)
@pytest.mark.parametrize("amx", [False, True])
def test_bfloat16_is_as_near_to_float32_as_transformers_is(kind, amx, monkeypatch):
    """Float32 of the same weights is the reference. With AMX, attention is PyTorch's."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    model = model_of(kind, torch.bfloat16, width=64)
    truth = losses(model_of(kind, torch.bfloat16, width=64).float(), FLOAT32)
    plain = (losses(model, BFLOAT16) - truth).abs().mean()
    with fast_inference(model):
        assert own_forwards(model)
        assert blocked_attention.is_used_by(model) is not amx
        fast = (losses(model, BFLOAT16) - truth).abs().mean()
    assert 0 < fast <= 1.1 * plain


@pytest.mark.parametrize("name", ["default", None])
def test_adapters_and_the_bare_base_model_under_them(name):
    model = freeze_adapter(tiny_peft())
    with use_adapter(model, name):
        expected = states(model)
        with fast_inference(causal_lm(model)):
            got = states(model)
    assert (got - expected).norm() < 1e-5 * expected.norm()
    plain = states(tiny_model())
    assert bool((plain - got).norm() < 1e-4 * plain.norm()) is (name is None)


def test_a_float32_adapter_on_a_bfloat16_base_is_cast():
    """As between two steps of a training."""
    model = tiny_peft()
    causal_lm(model).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    expected = states(model.eval(), BFLOAT16)
    with fast_inference(causal_lm(model)):
        got = states(model, BFLOAT16)
    assert got.dtype == expected.dtype
    assert (got.float() - expected.float()).norm() < 0.05 * expected.float().norm()


def test_gradients_are_transformers_own():
    model = tiny_peft()
    batch = batches()[1]

    def gradients():
        model.zero_grad()
        hidden_states(model, batch.model_inputs).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    with fast_inference(causal_lm(model)):
        got = gradients()
    assert got.keys() == expected.keys() and len(got) > 10
    assert all(torch.equal(got[name], grad) for name, grad in expected.items())


@pytest.mark.parametrize("kind", LLAMA_LIKE)
def test_a_call_with_a_cache_fills_it(kind):
    model = model_of(kind)
    ids_BT = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    own = model.generate(ids_BT, **options)
    with fast_inference(model):
        fast = model.generate(ids_BT, **options)
    assert torch.equal(fast.sequences, own.sequences) and fast.past_key_values.get_seq_length() == 12
    torch.testing.assert_close(torch.stack(fast.logits), torch.stack(own.logits), rtol=1e-4, atol=1e-4)


def test_sliding_windows_and_packed_sequences_keep_their_masks():
    model = model_of("mistral", sliding_window=16)
    expected = states(model)
    wide = states(model_of("mistral", sliding_window=None))
    assert (expected - wide).norm() > 1e-2 * wide.norm()
    with fast_inference(model):
        assert (states(model) - expected).norm() < 1e-5 * expected.norm()

    model = model_of("llama")
    packed = {"input_ids": torch.arange(3, 83)[None], "position_ids": torch.arange(40).repeat(2)[None]}
    with torch.no_grad():
        expected = hidden_states(model, packed)
        with fast_inference(model):
            got = hidden_states(model, packed)
    assert (got - expected).norm() < 1e-5 * expected.norm()


def test_a_module_that_computes_something_else_is_left_alone(monkeypatch):
    """Llama's by name and structure, but with other values."""
    from transformers.models.llama import modeling_llama

    original = modeling_llama.LlamaRMSNorm.forward
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: 1.5 * original(self, x))
    model = model_of("llama")
    expected = states(model)
    with fast_inference(model):
        assert not any(type(module).__name__ == "LlamaRMSNorm" for module in own_forwards(model))
        got = states(model)
    assert (got - expected).norm() < 1e-5 * expected.norm()


def test_a_class_is_compared_once_and_again_under_an_adapter(monkeypatch):
    """The comparison calls the class's own forward pass; the fast pass does not."""
    from transformers.models.llama import modeling_llama

    compared = []
    for kind in (modeling_llama.LlamaDecoderLayer, modeling_llama.LlamaRMSNorm):

        def counted(self, *args, original=kind.forward, **kwargs):
            compared.append(type(self).__name__)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", counted)
    model = tiny_model()
    for _ in range(3):
        with fast_inference(model):
            assert len(own_forwards(model)) == 5 + 2
    assert compared == ["LlamaRMSNorm", "LlamaDecoderLayer"]
    adapted = freeze_adapter(add_adapter(model, LoraSpec(rank=2, alpha=2), 0))
    compared.clear()
    with fast_inference(causal_lm(adapted)):
        pass
    assert compared == ["LlamaDecoderLayer"]


def test_an_error_inside_restores_the_model():
    model = model_of("llama")
    with pytest.raises(KeyError), fast_inference(model):
        raise KeyError("stop")
    assert not own_forwards(model) and not blocked_attention.is_used_by(model)


def test_batches_do_not_depend_on_each_other():
    """No buffer that one forward pass overwrites is an output of another."""
    model, rows = model_of("llama"), examples(8)
    with fast_inference(model), torch.no_grad():
        kept = [hidden_states(model, b.model_inputs) for b in length_batches(rows, 60)]
        copies = [hidden.clone() for hidden in kept]
        again = [hidden_states(model, b.model_inputs) for b in length_batches(rows, 60)]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(kept, copies, again, strict=True))


def test_a_model_in_another_dtype_is_left_alone():
    model = model_of("llama", torch.float64)
    with fast_inference(model):
        assert not own_forwards(model) and not blocked_attention.is_used_by(model)


def test_sparse_attention_keeps_its_mask():
    """DeepSeek-V3.2 masks keys outside its index for attention that is called `sdpa` or `eager`, and no other."""
    model = tiny_zoo_model("deepseek_v32")
    expected = states(model)
    with fast_inference(model):
        assert blocked_attention.is_used_by(model)
        got = states(model)
    assert (got - expected).norm() < 1e-5 * expected.norm()


def test_another_model_keeps_its_attention_meanwhile():
    model, other = model_of("llama"), model_of("gpt2")
    expected = states(other)
    with fast_inference(model):
        assert not blocked_attention.is_used_by(other)
        assert torch.equal(states(other), expected)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


class Doubled(torch.nn.Module):
    """Another MLP with the parts of Llama's."""

    def __init__(self, mlp):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
            mlp.act_fn,
        )

    def forward(self, x):
        return 2 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def halved(module):
    plain = module.forward
    module.forward = lambda *args, **kwargs: plain(*args, **kwargs) / 2


def hooked(module):
    module.register_forward_hook(lambda _, __, out: (out[0] * 3, *out[1:]) if isinstance(out, tuple) else out * 3)


CHANGES = {
    "a hook on the MLP": lambda layer: hooked(layer.mlp),
    "a hook on attention": lambda layer: hooked(layer.self_attn),
    "a hook on a projection": lambda layer: hooked(layer.mlp.down_proj),
    "a hook on the activation": lambda layer: hooked(layer.mlp.act_fn),
    "a hook on a norm": lambda layer: hooked(layer.input_layernorm),
    "a hook before the layer": lambda layer: layer.register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:])),
    "another forward of the MLP": lambda layer: halved(layer.mlp),
    "another forward of a projection": lambda layer: halved(layer.self_attn.o_proj),
    "another MLP": lambda layer: setattr(layer, "mlp", Doubled(layer.mlp)),
    "another activation": lambda layer: (delattr(layer.mlp, "act_fn"), setattr(layer.mlp, "act_fn", torch.abs)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_to_the_second_layer_alone_take_part(change):
    model = model_of("llama")
    plain = states(model)
    with fast_inference(model):
        states(model)
    CHANGES[change](model.model.layers[1])
    expected = states(model)
    with fast_inference(model):
        got = states(model)
    assert (got - expected).norm() < 1e-5 * expected.norm() < (plain - expected).norm()
    assert model.model.layers[0] not in own_forwards(model)
