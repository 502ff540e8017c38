"""Forward passes without the head: autocast, the cache of dtypes, and the head of each architecture."""

import pytest
import torch

from tests.support.tiny_models import tiny_model, tiny_peft
from tokenuq_ml.models.forward import accept_token_function, cached_dtypes, causal_lm, head_of, hidden_states
from tokenuq_ml.models.numerics import Numerics

BFLOAT16 = Numerics("cpu", torch.bfloat16, 1, "test")
INPUTS = {"input_ids": torch.tensor([[5, 6, 7]])}


@torch.no_grad()
def test_autocast_is_on_only_where_a_weight_has_another_dtype():
    model = tiny_peft().eval()
    exact = hidden_states(model, INPUTS)
    assert exact.dtype == torch.float32
    assert not torch.equal(hidden_states(model, INPUTS, BFLOAT16).float(), exact)
    model.to(torch.bfloat16)
    assert torch.equal(hidden_states(model, INPUTS, BFLOAT16), hidden_states(model, INPUTS))


@torch.no_grad()
def test_dtypes_are_read_once_inside_the_context(monkeypatch):
    model = tiny_peft().eval()
    expected = hidden_states(model, INPUTS, BFLOAT16)
    with cached_dtypes(model):
        with cached_dtypes(model):
            pass
        monkeypatch.setattr(type(causal_lm(model)), "parameters", lambda *_: pytest.fail("read again"))
        assert torch.equal(hidden_states(model, INPUTS, BFLOAT16), expected)


def test_the_head_of_gemma_2_caps_its_logits():
    assert head_of(tiny_model("gemma2")).softcap == 5.0
    assert head_of(tiny_model("llama")).softcap is None


def test_a_token_function_runs_inside_the_wrapped_forward():
    """Trap 19: what wraps the model for several devices acts only within its forward."""
    model, seen = tiny_peft(), []
    model.get_base_model().register_forward_pre_hook(lambda *_: seen.append("forward"))
    with accept_token_function(model):
        seen.clear()
        out = model(input_ids=torch.ones(1, 3, dtype=torch.long), token_function=lambda h, head: h.shape)
    assert seen == ["forward"] and out == (1, 3, 32)
    assert model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.shape == (1, 3, 97)
