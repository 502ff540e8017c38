"""BALD is computed in float32 for any model dtype and any setting of the process; the model is restored."""

import copy

import pytest
import torch

from tests.support.tiny_models import FLOAT32, examples, tiny_peft
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.models.float32_passes import float32_passes, ieee_float32_products, widened_weights
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.mc_dropout import token_uncertainty, uncertainty_in_model_dtype

BFLOAT16 = Numerics("cpu", torch.bfloat16, 1, "test")
SPEC = UncertaintySpec(samples=4, dropout=0.3)
KEYS = ["example_id", "position"]
SETTINGS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


def narrow_model():
    """Return a model whose base and adapter are bfloat16."""
    return tiny_peft().to(torch.bfloat16)


def test_bald_of_a_bfloat16_model_equals_that_of_its_weights_in_float32():
    model, rows = narrow_model(), examples(5)
    truth = token_uncertainty(copy.deepcopy(model).float(), rows, SPEC, FLOAT32).sort(KEYS)
    got = token_uncertainty(model, rows, SPEC, BFLOAT16).sort(KEYS)
    assert (got["bald"] - truth["bald"]).abs().max() < 1e-6
    rounded = uncertainty_in_model_dtype(model, rows, SPEC, BFLOAT16).sort(KEYS)
    assert (rounded["bald"] - truth["bald"]).abs().max() > 1e-4


def test_autocast_around_the_call_does_not_change_bald():
    model, rows = tiny_peft(), examples(3)
    truth = token_uncertainty(model, rows, SPEC, FLOAT32)
    with torch.autocast("cpu", torch.bfloat16):
        assert token_uncertainty(model, rows, SPEC, FLOAT32).equals(truth)


def test_the_original_tensors_are_restored():
    model = narrow_model()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    for failing in (False, True):
        with pytest.raises(KeyError) if failing else widened_weights(model), float32_passes(model) as dtype:
            assert dtype == torch.float32 and {p.dtype for p in model.parameters()} == {torch.float32}
            if failing:
                raise KeyError
        after = model.state_dict(keep_vars=True)
        assert all(after[name].data_ptr() == pointer for name, (pointer, _) in before.items())
        assert all(torch.equal(after[name], value) for name, (_, value) in before.items())


def test_float64_stays_float64():
    model = tiny_peft().double()
    with float32_passes(model) as dtype:
        assert dtype == torch.float64 and {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.fixture
def settings():
    """Restore the settings of the process after the test."""
    before = [backend.fp32_precision for backend in SETTINGS]
    yield
    for backend, value in zip(SETTINGS, before, strict=True):
        backend.fp32_precision = value


@pytest.mark.parametrize("how", ["by the old function", "one by one", "untouched"])
def test_products_are_ieee_float32_and_the_users_settings_are_restored(settings, how):
    if how == "by the old function":
        torch.set_float32_matmul_precision("medium")
    elif how == "one by one":
        SETTINGS[0].fp32_precision, SETTINGS[1].fp32_precision = "tf32", "bf16"
    before = [backend.fp32_precision for backend in SETTINGS]
    assert how == "untouched" or before == ["tf32", "bf16"]
    with pytest.raises(KeyError), ieee_float32_products():
        assert [backend.fp32_precision for backend in SETTINGS] == ["ieee", "ieee"]
        raise KeyError
    assert [backend.fp32_precision for backend in SETTINGS] == before
    if how == "by the old function":
        assert torch.get_float32_matmul_precision() == "medium"


def test_a_global_precision_setting_does_not_change_bald(settings):
    model, rows = tiny_peft(), examples(3)
    truth = token_uncertainty(model, rows, SPEC, FLOAT32)
    torch.set_float32_matmul_precision("medium")
    assert token_uncertainty(model, rows, SPEC, FLOAT32).equals(truth)
