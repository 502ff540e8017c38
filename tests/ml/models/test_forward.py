"""Forward passes without the head: autocast, the cache of dtypes, and the head of each architecture."""

import pytest
import torch

from tests.support.tiny_models import tiny_model, tiny_peft
from tokenuq_ml.models.forward import cached_dtypes, causal_lm, head_of, hidden_states
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
