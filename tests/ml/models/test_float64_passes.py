"""Float64 passes of a float32 model, and the noise floor computed from them."""

import copy

import polars as pl
import pytest
import torch

from tests.support.tiny_models import ARCHITECTURES, FLOAT32, VOCAB, examples, tiny_architecture, tiny_model, tiny_peft
from tests.support.zoo import tiny_zoo_model
from tokenuq_ml.config import LoraSpec, UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample, collate
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.models.float64_passes import Float64ForFloat32, float64_passes
from tokenuq_ml.models.forward import hidden_states
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.bald_reference import SAMPLE_TOKENS, float64_uncertainty, reference_rows, reference_sample
from tokenuq_ml.scoring.mc_dropout import token_uncertainty, uncertainty_in_model_dtype
from tokenuq_ml.tables.bald_noise import noise_floor

pytestmark = pytest.mark.slow

KEYS = ["example_id", "position"]
INPUTS = {"input_ids": torch.arange(3, 60).reshape(3, 19) % VOCAB}


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_passes_equal_those_of_a_float64_copy(kind):
    model = add_adapter(tiny_architecture(kind), LoraSpec(rank=2, alpha=2), 0).eval()
    wide, plain = copy.deepcopy(model).double(), hidden_states(model, INPUTS)
    # PyTorch's grouped products of a mixture of experts take no float64.
    wide.get_base_model().set_experts_implementation("eager")
    with Float64ForFloat32():
        expected = hidden_states(wide, INPUTS)
    with float64_passes(model.get_base_model()):
        got = hidden_states(model, INPUTS)
    assert got.dtype == torch.float64 and torch.equal(got, expected)
    assert 0 < (got - plain).norm() < 1e-5 * got.norm()
    assert {p.dtype for p in model.parameters()} == {torch.float32} and torch.equal(hidden_states(model, INPUTS), plain)


@torch.no_grad()
def test_norms_and_softmax_that_ask_for_float32_get_float64():
    """The reference computes Llama's norm in float64; the norm of Transformers would round to float32."""
    norm = tiny_model().model.norm
    x = torch.randn(4, 32, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()
    with float64_passes(norm):
        got = norm(x)
    assert (got - expected).abs().max() < 1e-14
    assert (copy.deepcopy(norm).double()(x) - expected).abs().max() > 1e-9


def test_weights_are_restored_after_an_error(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(type(model.model.layers[1].mlp), "forward", lambda self, x: 1 / 0)
    with pytest.raises(ZeroDivisionError), float64_passes(model):
        hidden_states(model, INPUTS)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("mask", ["sequence", "position"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_bald_is_far_above_its_noise_floor_in_float32_but_not_in_bfloat16(kind, mask):
    """Dropout is as weak as its effect in SmolLM2: mean BALD between 1e-5 and 1e-3 nats."""
    model, rows, spec = tiny_peft(kind), examples(6), UncertaintySpec(samples=4, dropout=0.001, mask=mask)
    truth, single = float64_uncertainty(model, rows, spec), token_uncertainty(model, rows, spec, FLOAT32)
    assert noise_floor(reference_rows(single, truth)) < 1e-3 * single["bald"].mean()
    model.to(torch.bfloat16)
    truth = float64_uncertainty(model, rows, spec)
    half = uncertainty_in_model_dtype(model, rows, spec, Numerics("cpu", torch.bfloat16, 1, "test"))
    assert noise_floor(reference_rows(half, truth)) > 0.05 * half["bald"].mean()


def test_the_reference_is_joined_by_token():
    stored = pl.DataFrame({"example_id": ["a", "a"], "position": [1, 2], "bald": [0.5, 0.25]})
    wide = pl.DataFrame({"example_id": ["a", "a"], "position": [2, 1], "bald": [0.3, 0.4]})
    rows = reference_rows(stored, wide)
    assert rows["bald_float64"].to_list() == [0.4, 0.3] and noise_floor(rows) == pytest.approx((0.1 + 0.05) / 2)


def long_example(number, tokens):
    return TokenizedExample(f"long/{number}", "long", "test", [5] * tokens, [False] + [True] * (tokens - 1))


def test_the_sample_stays_within_its_budget_whatever_the_order():
    rows = examples(90)
    sample = reference_sample(rows)
    assert [one.example_id for one in sample] == [one.example_id for one in reference_sample(rows[::-1])]
    used = sum(len(one.input_ids) for one in sample)
    assert SAMPLE_TOKENS - 30 < used <= SAMPLE_TOKENS
    long = [long_example(number, SAMPLE_TOKENS + number) for number in (3, 1, 2)]
    assert [one.example_id for one in reference_sample(long)] == ["long/1"]
    unscored = TokenizedExample("none", "none", "test", [1, 2], [False, False])
    assert reference_sample([unscored]) == [] and collate(sample).tokens > 0


@pytest.mark.parametrize("kind", ["mamba", "deepseek_v32", "dbrx", "zaya", "nemotron_h"])
@torch.no_grad()
def test_code_that_reads_the_weights_of_modules_inside_gets_float64(kind):
    """Kernels of state-space layers, and casts to the dtype of the next projection, expert or norm."""
    model = tiny_zoo_model(kind).to(torch.bfloat16)
    wide, plain = copy.deepcopy(model).double(), hidden_states(model, INPUTS)
    wide.set_experts_implementation("eager")
    with Float64ForFloat32():
        expected = hidden_states(wide, INPUTS)
    with float64_passes(model):
        got = hidden_states(model, INPUTS)
    assert (got - expected).norm() < 1e-12 * expected.norm() < (got - plain).norm()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
