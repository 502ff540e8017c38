"""Dropout in one launch follows Philox4x32-10 as published. Runs in Triton's interpreter.

`test_every_backend.py` starts it with TRITON_INTERPRET=1.
"""

import importlib.util
import os

import pytest
import torch
from torch import nn

from tokenuq_ml.kernels import fused_dropout
from tokenuq_ml.kernels.backend import use_backend
from tokenuq_ml.models.lora_dropout import BitMaskDropout

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs Triton and TRITON_INTERPRET=1",
)
ROUNDING = {torch.float64: 0.0, torch.float32: 1e-6, torch.bfloat16: 2**-7}
"""Of a sum; the interpreter cuts the bits that bfloat16 has not."""
BLOCK, SEED, DROPPED = 16, 0x1234_5678_9ABC_DEF0, 9830


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several programs for a few hundred elements, the last one not full."""
    monkeypatch.setattr(fused_dropout, "BLOCK", BLOCK)


def philox(counter, seed):
    """Return the four words of Philox4x32-10, in Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, (seed & 0xFFFFFFFF, seed >> 32)
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second & 0xFFFFFFFF,
            (first >> 32) ^ c3 ^ k1,
            first & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def test_the_generator_gives_the_published_words():
    """Known answer for counter and key 0, from the authors' Random123."""
    assert philox((0, 0, 0, 0), 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


def kept(elements, seed=SEED):
    """Return which elements the definition keeps."""
    places = []
    for n in range(elements):
        program, part, lane = n // (8 * BLOCK), n // BLOCK % 8, n % BLOCK
        word = philox((program * BLOCK + lane, 0, 0, 0), seed)[part // 2]
        places.append((word >> 16 * (part % 2)) & 0x7FFF >= DROPPED)
    return torch.tensor(places)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(300,), (1, 3), (5, 7, 11)])
def test_elements_are_kept_as_the_generator_says(shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    expected = torch.where(kept(x.numel()).view(shape), x, 0)
    assert torch.equal(fused_dropout.drop_elements(x, SEED, DROPPED), expected)
    total = torch.randn(shape, dtype=dtype)
    sums = (total.double() + expected.double()).to(dtype)
    assert fused_dropout.drop_elements(x, SEED, DROPPED, onto=total) is total
    torch.testing.assert_close(total, sums, rtol=ROUNDING[dtype], atol=0)


def test_columns_that_are_not_dense_and_no_elements_are_accepted():
    x = torch.randn(40, 30).T
    expected = torch.where(kept(x.numel()).view(x.shape), x, 0)
    assert torch.equal(fused_dropout.drop_elements(x, SEED, DROPPED), expected)
    assert fused_dropout.drop_elements(torch.empty(0, 4), SEED, DROPPED).shape == (0, 4)


def test_lora_s_dropout_uses_it_with_a_seed_of_the_global_generator():
    x = torch.randn(6, 50, dtype=torch.float64, requires_grad=True)
    dropout = BitMaskDropout(DROPPED / 2**15)
    with use_backend("triton"):
        torch.manual_seed(3)
        y = dropout(x)
        y.sum().backward()
        torch.manual_seed(3)
        assert torch.equal(dropout(x), y)
        assert not torch.equal(dropout(x), y)
    torch.manual_seed(3)
    seed = int(torch.randint(2**63 - 1, ()))
    expected = torch.where(kept(x.numel(), seed).view(x.shape), x, 0) / (1 - DROPPED / 2**15)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(x.grad, (expected / x).detach(), rtol=1e-12, atol=0)


def test_a_layer_drops_the_same_elements_forward_and_backward():
    """The gradients of the fused LoRA layer equal those of autograd through the mask that its output shows."""
    from tokenuq_ml.models.lora_linear import _LoraProduct

    rows, inputs, outputs, rank = 9, 20, 12, 3
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    x, a, b = (t.requires_grad_() for t in (draw(rows, inputs), draw(rank, inputs), draw(outputs, rank)))
    weight, weights = draw(outputs, inputs), draw(rows, outputs)
    dropout = BitMaskDropout(DROPPED / 2**15)
    with use_backend("triton"):
        torch.manual_seed(3)
        y = _LoraProduct.apply(x, weight, None, a, b, 2.0, dropout)
        (y * weights).sum().backward()
    ours = [t.grad.clone() for t in (x, a, b)]
    torch.manual_seed(3)
    mask = kept(x.numel(), int(torch.randint(2**63 - 1, ()))).view(x.shape).double() / (1 - DROPPED / 2**15)
    for t in (x, a, b):
        t.grad = None
    plain = nn.functional.linear(x, weight) + 2.0 * (x * mask) @ a.T @ b.T
    (plain * weights).sum().backward()
    torch.testing.assert_close(y, plain, rtol=1e-10, atol=1e-10)
    for own, tensor in zip(ours, (x, a, b), strict=True):
        torch.testing.assert_close(own, tensor.grad, rtol=1e-10, atol=1e-10)
