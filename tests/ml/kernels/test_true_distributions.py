"""Divergence from known distributions equals KL over the complete vocabulary in float64."""

import pytest
import torch

from tests.support.kernels import HEADS, N, V, full_logits, head_products, random_inputs
from tokenuq_ml.kernels import head as heads
from tokenuq_ml.kernels.scores import token_scores
from tokenuq_ml.kernels.true_distributions import TrueDistributions, kl_from_support


def random_truth(rows=N, most=5) -> TrueDistributions:
    """Distributions over 1 to `most` ids of V; the second token's is not known, the third's has one id."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.rand(rows, V, generator=generator).argsort(1)[:, :most]
    sizes = torch.arange(rows) % most + 1
    is_known = torch.arange(rows) != 1
    within = (torch.arange(most) < sizes[:, None]) & is_known[:, None]
    parts = []
    for _ in range(2):
        p = torch.rand(rows, most, generator=generator, dtype=torch.float64) * within
        parts.append(p / p.sum(1, keepdim=True).clamp(min=1e-300))
    return TrueDistributions(ids * within, *parts, is_known)


def plain_kl(truth, probability, logits):
    """KL from complete vectors, in float64."""
    full = torch.zeros(len(logits), V, dtype=torch.float64).scatter_add_(1, truth.support_NS, probability)
    logq = torch.log_softmax(logits.double(), -1)
    return torch.nn.functional.kl_div(logq, full, reduction="none").sum(1)


@pytest.mark.parametrize("kwargs", HEADS)
def test_divergences_equal_those_of_complete_distributions(kwargs):
    head, hidden, labels, _ = random_inputs(**kwargs)
    truth = random_truth()
    scores = token_scores(hidden, head, labels, truth=truth)
    logits = full_logits(head, hidden)
    for found, probability in ((scores.true_kl_N, truth.probability_NS), (scores.clean_kl_N, truth.clean_NS)):
        expected = plain_kl(truth, probability, logits)
        assert found[1].isnan() and found.dtype == torch.float64
        torch.testing.assert_close(found[truth.is_known_N], expected[truth.is_known_N], rtol=1e-12, atol=1e-14)


def test_the_divergence_from_one_possible_token_is_its_loss():
    head, hidden, labels, _ = random_inputs()
    one = torch.ones(N, 1, dtype=torch.float64)
    truth = TrueDistributions(labels[:, None], one, one, torch.ones(N, dtype=torch.bool))
    scores = token_scores(hidden, head, labels, truth=truth)
    torch.testing.assert_close(scores.true_kl_N, scores.loss_N, rtol=1e-12, atol=1e-12)


def test_blocks_of_one_token_give_the_same(monkeypatch):
    head, hidden, labels, _ = random_inputs()
    whole = token_scores(hidden, head, labels, truth=random_truth())
    monkeypatch.setattr(heads, "CHUNK_BYTES", 5 * V * 8)
    monkeypatch.setattr(heads, "BLOCK_BYTES", 1)
    parts = token_scores(hidden, head, labels, truth=random_truth())
    torch.testing.assert_close(parts.true_kl_N, whole.true_kl_N, rtol=0, atol=1e-12, equal_nan=True)


def test_a_divergence_near_zero_keeps_its_digits_in_float32():
    """Trap: log-probabilities in float32 are wrong by 1e-7, and so would be a divergence of 1e-8."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, V, generator=generator, dtype=torch.float64).mul_(3).float()
    p = torch.softmax(logits.double(), -1)
    near = p * (1 + 1e-4 * torch.randn(1, V, generator=generator, dtype=torch.float64))
    near /= near.sum()
    truth = TrueDistributions(torch.arange(V)[None], near, p, torch.ones(1, dtype=torch.bool))
    true_kl, clean_kl = truth.divergences(slice(0, 1), logits)
    expected = (near * (near / p).log()).sum()
    assert 1e-10 < expected < 1e-7
    torch.testing.assert_close(true_kl[0], expected, rtol=1e-6, atol=0)
    assert 0 <= clean_kl[0] < 1e-15


def test_equal_distributions_have_no_negative_divergence():
    p = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64)
    assert kl_from_support(p, p.log() + 1e-16).item() >= 0


def test_divergences_cost_no_head_product(monkeypatch):
    head, hidden, labels, _ = random_inputs()
    with_truth = head_products(monkeypatch, lambda: token_scores(hidden, head, labels, truth=random_truth()))
    assert with_truth == 1


def test_no_token_has_no_divergence():
    head, hidden, labels, _ = random_inputs(rows=0)
    assert len(token_scores(hidden, head, labels, truth=random_truth(rows=0)).true_kl_N) == 0
