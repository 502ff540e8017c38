"""A base model that bitsandbytes quantises: the same weights in every precision and mode, and exact passes."""

import importlib.util

import pytest
import torch

from tests.support.mixtures import tiny_mixture
from tests.support.tiny_models import examples, tiny_architecture, tiny_model
from tokenuq_ml.config import LoraSpec, UncertaintySpec
from tokenuq_ml.data.batching import collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapters import add_adapter, attach_adapter, save_adapter, use_adapter
from tokenuq_ml.models.base_settings import BaseSettings
from tokenuq_ml.models.fast_inference import fast_inference
from tokenuq_ml.models.float64_passes import float64_passes
from tokenuq_ml.models.forward import head_of, hidden_states
from tokenuq_ml.models.load import load_model
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.models.quantization import _place, check_quantization, dequantised_weight, quantised_layers
from tokenuq_ml.scoring.bald_reference import float64_uncertainty
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples

pytest.importorskip("bitsandbytes")

KINDS = ("nf4", "int8")
HEAVY = pytest.mark.heavy
TRAIN = examples(4)
SPEC = UncertaintySpec(samples=3, dropout=0.2)
# bitsandbytes has other kernels for a GPU, which is used where there is one.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOAT32, BFLOAT16 = (Numerics(DEVICE, dtype, 1, "test") for dtype in (torch.float32, torch.bfloat16))
BATCH = collate(TRAIN).to(DEVICE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    # Also of GPT-2, whose layers store their weights transposed.
    for kind in ("llama", "gpt2"):
        tiny_model(kind).save_pretrained(path / kind)
    return path


def quantised(folder, kind: str, precision: str = "float32", model: str = "llama"):
    return load_model(folder / model, precision, BaseSettings(quantization=kind))[0]


def plain_copy(folder, kind: str, model: str = "llama"):
    """The base model with the dequantised weights in plain layers."""
    plain, source = load_model(folder / model, "float32")[0], quantised(folder, kind, model=model)
    for name, layer in source.named_modules():
        if layer in set(quantised_layers(source)):
            weight = dequantised_weight(layer)
            plain.get_submodule(name).weight.data = weight.T.contiguous() if model == "gpt2" else weight
    return plain


def adapted(model, dora: bool = False):
    model = add_adapter(model, LoraSpec(rank=4, alpha=8, dropout=0.1), 0, use_dora=dora)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
        if "magnitude" in name:
            parameter.data.mul_(1.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_same_in_every_precision_and_norms_stay_float32(kind, folder):
    narrow, wide = quantised(folder, kind, "bfloat16"), quantised(folder, kind)
    pairs = list(zip(quantised_layers(narrow), quantised_layers(wide), strict=True))
    assert len(pairs) == 14
    assert all(torch.equal(dequantised_weight(a), dequantised_weight(b)) for a, b in pairs)
    assert narrow.model.norm.weight.dtype == torch.float32
    assert {narrow.lm_head.weight.dtype, narrow.model.embed_tokens.weight.dtype} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in narrow.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_eval_mode_computes_what_training_does(kind, folder):
    """On a CPU, bitsandbytes would round scales (4 bits) or inputs (8 bits) in eval mode."""
    model, batch = quantised(folder, kind), BATCH
    with torch.no_grad():
        states = [hidden_states(model.train(mode), batch.model_inputs) for mode in (True, False, True)]
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


@pytest.mark.parametrize("model", ["llama", pytest.param("gpt2", marks=HEAVY)])
@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=HEAVY)])
def test_scores_and_gradients_are_those_of_the_dequantised_weights(kind, model, folder):
    ours, plain = (adapted(one) for one in (quantised(folder, kind, model=model), plain_copy(folder, kind, model)))
    losses = [score_examples(one, TRAIN, FLOAT32)["loss"].to_numpy() for one in (ours.eval(), plain.eval())]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)
    gradients = []
    for one in (ours, plain):
        with fast_inference(one.get_base_model()):
            hidden_BTD = hidden_states(one, BATCH.model_inputs)
            weight_BTD = torch.randn(hidden_BTD.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
            (hidden_BTD * weight_BTD).mean().backward()
        gradients.append({name: p.grad for name, p in one.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("dora", [False, pytest.param(True, marks=HEAVY)])
@pytest.mark.parametrize("kind", ["int8", pytest.param("nf4", marks=HEAVY)])
def test_bald_is_that_of_the_dequantised_weights_in_float32_and_float64(kind, dora, folder):
    wide, plain = (adapted(one, dora).eval() for one in (quantised(folder, kind), plain_copy(folder, kind)))
    narrow = adapted(quantised(folder, kind, "bfloat16"), dora).eval()
    expected = float64_uncertainty(plain, TRAIN, SPEC)["bald"].to_numpy()
    assert expected.max() > 1e-3
    for found in (
        token_uncertainty(wide, TRAIN, SPEC, FLOAT32),
        float64_uncertainty(wide, TRAIN, SPEC),
    ):
        assert found.sort("example_id", "position")["bald"].to_numpy() == pytest.approx(expected, rel=2e-3, abs=1e-5)
    # Embeddings and head are rounded, and nothing else.
    rounded = token_uncertainty(narrow, TRAIN, SPEC, BFLOAT16).sort("example_id", "position")["bald"].to_numpy()
    assert rounded == pytest.approx(expected, rel=0.2, abs=5e-3)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_stored_and_attached_and_switched_off(kind, folder, tmp_path):
    model, batch = adapted(quantised(folder, kind)).eval(), BATCH
    save_adapter(model, tmp_path / "adapter")
    again = attach_adapter(quantised(folder, kind), tmp_path / "adapter", "teacher")
    base = quantised(folder, kind)
    with torch.no_grad():
        assert torch.equal(hidden_states(again, batch.model_inputs), hidden_states(model, batch.model_inputs))
        with use_adapter(again, None):
            assert torch.equal(hidden_states(again, batch.model_inputs), hidden_states(base, batch.model_inputs))
    assert head_of(again).weight_VD.dtype == torch.float32


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_float64_passes_put_the_layers_back(kind, folder):
    model, batch = quantised(folder, kind), BATCH
    with torch.no_grad():
        before = hidden_states(model, batch.model_inputs)
        with float64_passes(model):
            wide = hidden_states(model, batch.model_inputs)
        assert wide.dtype == torch.float64 and torch.allclose(wide.float(), before, rtol=1e-3, atol=1e-4)
        assert torch.equal(hidden_states(model, batch.model_inputs), before)


@pytest.mark.heavy
def test_experts_that_are_one_tensor_are_refused(tmp_path):
    """They are most of the model, and would stay as they are."""
    tiny_mixture("mixtral").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"experts\.gate_up_proj of MixtralForCausalLM is one tensor of several; rem"):
        load_model(tmp_path, "float32", BaseSettings(quantization="nf4"))


@pytest.mark.heavy
def test_a_model_that_reads_weights_itself_is_refused(tmp_path):
    tiny_architecture("mamba").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="MambaForCausalLM has no forward pass with layers that bitsandby"):
        load_model(tmp_path, "float32", BaseSettings(quantization="int8"))


def test_a_gpu_is_named_by_its_number(monkeypatch):
    """Accelerate refuses to train a quantised model on `cuda:0` that was loaded on `cuda`."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert [_place(device) for device in ("cuda", "cuda:0", "cpu")] == [1, 0, "cpu"]


def test_quantization_is_refused_without_the_package_and_on_other_devices(monkeypatch):
    with pytest.raises(InputError, match="runs on CUDA and on CPU, and this machine computes on mps"):
        check_quantization("nf4", "mps")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package bitsandbytes, .* pip install 'tokenuq\[quantized\]'"):
        check_quantization("int8", "cpu")
