"""Scores and BALD equal plain PyTorch with full logits."""

import pytest
import torch

from tests.support.kernels import HEADS, D, N, full_logits, random_inputs
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.scores import monte_carlo_scores, token_losses, token_scores


@pytest.mark.parametrize("kwargs", HEADS)
def test_loss_entropy_and_rank_equal_plain_pytorch(kwargs):
    head, hidden, labels, _ = random_inputs(**kwargs)
    logp = torch.log_softmax(full_logits(head, hidden), -1)
    scores = token_scores(hidden, head, labels)
    label_logp = logp.gather(1, labels[:, None])
    torch.testing.assert_close(scores.loss_N, -label_logp[:, 0], rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.entropy_N, -(logp.exp() * logp).sum(1), rtol=0, atol=1e-9)
    assert scores.rank_N.tolist() == (logp > label_logp).sum(1).tolist()
    torch.testing.assert_close(token_losses(hidden, head, labels), scores.loss_N, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kwargs", HEADS)
def test_likeliest_tokens_equal_plain_pytorch_at_the_wanted_positions(kwargs):
    head, hidden, labels, _ = random_inputs(**kwargs)
    wanted = torch.arange(N) % 5 != 1
    scores = token_scores(hidden, head, labels, 4, wanted)
    expected = torch.softmax(full_logits(head, hidden), -1)[wanted].topk(4)
    assert scores.choice_MA.equal(expected.indices)
    torch.testing.assert_close(scores.probability_MA, expected.values, rtol=0, atol=1e-9)


def test_likeliest_tokens_do_not_change_the_losses():
    head, hidden, labels, _ = random_inputs()
    everywhere = torch.ones(N, dtype=torch.bool)
    scores = token_scores(hidden, head, labels, 4, everywhere)
    assert scores.loss_N.equal(token_scores(hidden, head, labels).loss_N)


def test_likeliest_tokens_are_none_if_no_position_is_wanted():
    head, hidden, labels, _ = random_inputs()
    nowhere = torch.zeros(N, dtype=torch.bool)
    assert token_scores(hidden, head, labels, 4, nowhere).choice_MA is None


def test_the_likeliest_token_has_rank_zero():
    head, hidden, _, _ = random_inputs()
    likeliest = full_logits(head, hidden).argmax(1)
    assert token_scores(hidden, head, likeliest).rank_N.eq(0).all()


def test_large_logits_have_finite_scores():
    head, hidden, labels, _ = random_inputs(dtype=torch.float32, magnitude=1e4)
    scores = token_scores(hidden, head, labels)
    assert scores.loss_N.isfinite().all() and scores.entropy_N.isfinite().all()


def test_sums_over_a_bfloat16_heads_vocabulary_are_float32():
    """Trap: a log-softmax in bfloat16 has three digits."""
    head, hidden, labels, _ = random_inputs(dtype=torch.bfloat16)
    scores = token_scores(hidden, head, labels)
    logits = (hidden @ head.weight_VD.T).float()
    assert scores.loss_N.dtype == torch.float32
    torch.testing.assert_close(scores.loss_N, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("rows", [0, 1])
def test_no_token_and_one_token_have_scores(rows):
    head, hidden, labels, _ = random_inputs(rows=rows)
    assert len(token_scores(hidden, head, labels).loss_N) == rows
    assert len(monte_carlo_scores(hidden.expand(2, rows, D), head, labels).bald_N) == rows


def test_monte_carlo_scores_equal_their_formulas():
    head, hidden, labels, _ = random_inputs()
    samples = torch.stack([hidden + 0.3 * torch.randn_like(hidden) for _ in range(4)])
    p = torch.softmax(torch.stack([full_logits(head, h) for h in samples]), -1)
    entropy = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
    scores = monte_carlo_scores(samples, head, labels)
    mean = p.mean(0)
    torch.testing.assert_close(scores.predictive_entropy_N, entropy(mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.expected_entropy_N, entropy(p).mean(0), rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.bald_N, (p * (p / mean).log()).sum(-1).mean(0), rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.mc_loss_N, -mean.gather(1, labels[:, None])[:, 0].log(), rtol=0, atol=1e-9)


def test_bald_of_nearly_equal_samples_keeps_its_digits_in_float32():
    """Trap: the difference of entropies loses BALD's digits if samples nearly agree; the mean KL does not."""
    head, hidden, labels, _ = random_inputs()
    samples = torch.stack([hidden + 1e-4 * torch.randn_like(hidden) for _ in range(4)])
    exact = monte_carlo_scores(samples, head, labels).bald_N
    head32 = Head(head.weight_VD.float())
    single = monte_carlo_scores(samples.float(), head32, labels).bald_N
    p = torch.softmax(torch.stack([full_logits(head32, h.float()) for h in samples]), -1)
    entropy = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
    difference = entropy(p.mean(0)) - entropy(p).mean(0)
    assert (single - exact).abs().max() < (difference - exact).abs().max() / 3


def test_bald_of_equal_samples_is_zero():
    head, hidden, labels, _ = random_inputs(dtype=torch.float32)
    scores = monte_carlo_scores(hidden.expand(3, N, D), head, labels)
    assert scores.bald_N.max() < 1e-6 and scores.bald_N.min() >= 0
