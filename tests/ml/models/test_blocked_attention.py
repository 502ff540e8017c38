"""Blocked attention equals softmax attention in float64."""

import pytest
import torch

from tokenuq_ml.models import blocked_attention
from tokenuq_ml.models.blocked_attention import QUERIES, causal_attention


def reference(query_BGTRF, key_BGTF, value_BGTF):
    """Compute complete score matrices in float64."""
    query, key, value = (x.double() for x in (query_BGTRF, key_BGTF, value_BGTF))
    length = key.shape[2]
    score = torch.einsum("bgtrf,bgsf->bgrts", query, key)
    score = score.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
    return torch.einsum("bgrts,bgsf->btgrf", score.softmax(-1), value).flatten(2)


def tensors(length, dtype=torch.float32, shared=3):
    torch.manual_seed(length)
    query, key = torch.randn(2, 2, length, shared, 8), torch.randn(2, 2, length, 8)
    # As from a projection: heads are the second last dimension in memory.
    return query, key, torch.randn(2, length, 2, 8).to(dtype).transpose(1, 2)


@pytest.mark.parametrize("length", [1, QUERIES - 1, QUERIES, QUERIES + 1, 3 * QUERIES + 5])
@pytest.mark.parametrize("shared", [1, 3])
def test_float32_equals_float64_up_to_rounding(length, shared):
    inputs = tensors(length, shared=shared)
    torch.testing.assert_close(causal_attention(*inputs).double(), reference(*inputs), rtol=1e-5, atol=1e-6)


def test_the_score_budget_does_not_change_the_result(monkeypatch):
    """If the scores of all heads exceed the budget, fewer heads run at a time: here two, then one."""
    inputs = tensors(2 * QUERIES)
    monkeypatch.setattr(blocked_attention, "BLOCK_SCORES", 2 * 3 * QUERIES * QUERIES)
    torch.testing.assert_close(causal_attention(*inputs).double(), reference(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_scores_of_a_bfloat16_model_are_float32(autocast):
    """Scores of several tens, as in trained models: rounding to bfloat16 would change them by a tenth."""
    query, key, value = tensors(70, torch.bfloat16)
    query = query * 15
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = causal_attention(query, key, value)
    expected = reference(query, key, value)
    assert got.dtype == torch.bfloat16
    # Rounding of the weights and of the result, 2^-9 each.
    assert (got.double() - expected).norm() < 3e-3 * expected.norm()


def test_pytorchs_kernel_is_faster_for_bfloat16_with_amx(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not blocked_attention.is_faster(torch.bfloat16) and blocked_attention.is_faster(torch.float32)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert blocked_attention.is_faster(torch.bfloat16) and not blocked_attention.is_faster(torch.float64)
