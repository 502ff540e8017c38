"""Fused reductions equal float64 by PyTorch, for every dtype of a head. Runs in Triton's interpreter.

`test_every_backend.py` starts it with TRITON_INTERPRET=1.
"""

import importlib.util
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.kernels import HEADS, D, N, V, plain_divergence, random_inputs
from tokenuq_ml.kernels import formulas, fused, launching
from tokenuq_ml.kernels.backend import use_backend
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.models.philox import philox_blocks
from tokenuq_ml.seeding import philox_bits

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs Triton and TRITON_INTERPRET=1",
)
VALUES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6}
"""Errors of sums: float32 also for a bfloat16 product, which is read exactly."""
GRADIENTS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8}
"""Relative errors of gradients, which are written in the dtype of the product."""
DTYPES = list(VALUES)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Two blocks per row, the second one not full."""
    monkeypatch.setattr(launching, "LANES", 16)


def exact(head, product):
    """Return the head in float64, and the logits of a product as a function that autograd follows."""
    wide = replace(
        head, weight_VD=head.weight_VD.double(), bias_V=None if head.bias_V is None else head.bias_V.double()
    )
    leaf = product.detach().clone().double().requires_grad_()
    return leaf, wide.finish(leaf)


def close(ours, exact_value, tolerance):
    torch.testing.assert_close(ours.double(), exact_value.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kwargs", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_of_rows(dtype, kwargs):
    head, hidden, labels, _ = random_inputs(dtype, **kwargs)
    product = head.product(hidden)
    # Ties, as bfloat16 has many: the first of equal logits is the likeliest.
    product[2, 5] = product[2, 3] = product[2].max()
    labels[2] = 5
    found, (_, z) = fused.row_statistics(product, head, labels), exact(head, product)
    loss, entropy, rank = formulas.loss_entropy_rank(z.detach().clone(), labels)
    for ours, value in ((found.loss_C, loss), (found.entropy_C, entropy), (found.lse_C, z.logsumexp(1))):
        close(ours, value, VALUES[dtype])
    if not kwargs:
        assert torch.equal(found.rank_C, rank) and torch.equal(found.is_top1_C, z.argmax(1) == labels)


@pytest.mark.parametrize("kwargs", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_cross_entropy_and_log_sum_exp(dtype, kwargs):
    head, hidden, labels, _ = random_inputs(dtype, **kwargs)
    product, weight = head.product(hidden), torch.rand(N) - 0.3
    lse = fused.row_statistics(product, head).lse_C
    for label_N, weight_N in ((labels, weight), (None, None)):
        leaf, z = exact(head, product)
        losses = z.logsumexp(1) if label_N is None else torch.nn.functional.cross_entropy(z, labels, reduction="none")
        (losses if weight_N is None else losses * weight_N).sum().backward()
        ours = product.clone()
        fused.softmax_gradient(ours, head, lse, label_N, weight_N)
        close(ours, leaf.grad, GRADIENTS[dtype])


@pytest.mark.parametrize("ids", [V, V - 5, V + 4])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_divergence_and_the_sum_of_both_losses(dtype, temperature, ids):
    """With another head for the teacher, which may have other padding rows."""
    head, hidden, labels, teacher = random_inputs(dtype, softcap=5.0, bias=True)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(ids, D, generator=generator, dtype=torch.float64).to(dtype)
    other, common = Head(weight, softcap=4.0, scale=0.7), min(ids, V)
    product, theirs = head.product(hidden), other.product(teacher)
    lse = fused.row_statistics(product, head).lse_C
    distill, mle = torch.rand(N), torch.rand(N)
    distill[4] = mle[5] = 0
    for mle_N in (None, mle):
        leaf, z = exact(head, product)
        kl = plain_divergence("forward_kl", z[:, :common], exact(other, theirs)[1][:, :common].detach(), temperature)
        ce = torch.nn.functional.cross_entropy(z, labels, reduction="none")
        (distill * kl + (0 if mle_N is None else mle_N * ce)).sum().backward()
        student = fused.Student(product.clone(), head, labels, lse)
        found = fused.forward_kl_gradient(student, theirs, other, distill, mle_N, temperature)
        close(found, kl.detach(), VALUES[dtype])
        close(student.product_CV, leaf.grad, GRADIENTS[dtype])


@pytest.mark.parametrize("samples", [2, 3, 10])
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_of_samples(dtype, samples):
    head, hidden, labels, teacher = random_inputs(dtype, bias=True, softcap=6.0)
    spread = torch.linspace(0, 1, samples, dtype=torch.float64).to(dtype)[:, None, None]
    product = head.product(hidden + spread * (teacher - hidden))
    z = [exact(head, one)[1].detach() for one in product]
    expected = formulas.monte_carlo(lambda k: z[k].clone(), samples, labels)
    for ours, value in zip(fused.monte_carlo(product, head, labels), expected, strict=True):
        close(ours, value, VALUES[dtype])


def test_equal_samples_have_no_bald_and_equal_distributions_no_divergence():
    head, hidden, labels, _ = random_inputs(torch.float32)
    product = head.product(hidden)
    _, _, bald, std_error, _ = fused.monte_carlo(product.expand(4, N, V).contiguous(), head, labels)
    assert bald.abs().max() < 1e-7 and std_error.abs().max() < 1e-7
    student = fused.Student(product.clone(), head, labels, fused.row_statistics(product, head).lse_C)
    kl = fused.forward_kl_gradient(student, product, head, torch.ones(N))
    assert kl.abs().max() < 1e-6 and student.product_CV.abs().max() < 1e-6


def test_a_row_that_counts_nothing_gets_no_gradient_whatever_its_logits_are():
    head, hidden, labels, _ = random_inputs(torch.float32)
    product, weight = head.product(hidden), torch.ones(N)
    product[3, 2], weight[3] = float("inf"), 0
    lse = fused.row_statistics(product, head).lse_C
    fused.softmax_gradient(product, head, lse, labels, weight)
    assert (product[3] == 0).all() and product.isfinite().all()


def test_a_row_that_is_not_finite_has_a_loss_that_is_not():
    head, hidden, labels, _ = random_inputs(torch.float32)
    for value in (float("nan"), float("inf")):
        product = head.product(hidden)
        product[3, 2] = value
        found = fused.row_statistics(product, head, labels)
        finite = torch.isfinite(found.loss_C)
        assert not finite[3] and finite.sum() == N - 1


def test_no_rows_launch_nothing():
    head, hidden, labels, _ = random_inputs(rows=0)
    assert len(fused.row_statistics(head.product(hidden), head, labels).loss_C) == 0


@pytest.mark.parametrize("stream", [(0, 0, 0), (1, 2, 3), (2**63 + 5, 2**32 - 1, 2**64 - 1)])
def test_random_words_are_those_of_numpy(stream):
    keys = [bytes(range(16)), b"\xff" * 16, b"\x80" + bytes(15)]
    with use_backend("triton"):
        words = philox_blocks(keys, stream, 5, torch.device("cpu"))
    for key, row in zip(keys, words, strict=True):
        assert np.array_equal(philox_bits(key, stream, 20).view(np.int64), row.flatten().numpy())
