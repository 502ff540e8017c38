"""The kernels against plain PyTorch with whole logits, in float64 and float32."""

import pytest
import torch

from tokenuq_ml import kernels
from tokenuq_ml.kernels import Head

N, D, V = 13, 8, 31


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    # Products of a few rows in blocks of fewer, neither of which divides N.
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 40 * 4 * V)
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 4 * 4 * V)


def make(dtype=torch.float64, softcap=None, bias=False, scale=1.0, rows=N, magnitude=1.0):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    head = Head(draw(V, D).to(dtype), draw(V).to(dtype) if bias else None, softcap=softcap, scale=scale)
    labels = torch.randint(0, V, (rows,), generator=generator)
    if rows > 1:
        labels[0], labels[1] = 0, V - 1
    return head, (draw(rows, D) * magnitude).to(dtype), labels, draw(rows, D).to(dtype)


def whole_logits(head, hidden):
    logits = hidden @ head.weight_VD.T
    if head.bias_V is not None:
        logits = logits + head.bias_V
    logits = logits * head.scale
    return head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits


HEADS = [{}, {"softcap": 5.0}, {"bias": True}, {"softcap": 3.0, "scale": 0.5, "bias": True}]


@pytest.mark.parametrize("kwargs", HEADS)
def test_scores_equal_plain_pytorch(kwargs):
    head, hidden, labels, _ = make(**kwargs)
    logp = torch.log_softmax(whole_logits(head, hidden), -1)
    scores = kernels.token_scores(hidden, head, labels)
    label_logp = logp.gather(1, labels[:, None])
    torch.testing.assert_close(scores.loss_N, -label_logp[:, 0], rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.entropy_N, -(logp.exp() * logp).sum(1), rtol=0, atol=1e-9)
    assert scores.rank_N.tolist() == (logp > label_logp).sum(1).tolist()
    torch.testing.assert_close(kernels.token_losses(hidden, head, labels), scores.loss_N, rtol=0, atol=1e-9)


def test_rank_is_zero_for_the_first_choice():
    head, hidden, _, _ = make()
    first = whole_logits(head, hidden).argmax(1)
    assert kernels.token_scores(hidden, head, first).rank_N.eq(0).all()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kwargs", HEADS)
def test_training_loss_and_gradient_equal_autograd(kwargs, temperature):
    head, hidden, labels, teacher = make(**kwargs)
    mle = torch.arange(N) % 3 == 0
    weights = mle.double(), (~mle).double() * 0.7
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    out = kernels.training_loss(ours, head, labels, *weights, teacher, temperature)
    logits = whole_logits(head, theirs)
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    # Trap: the full KL, not its cross-entropy form, so that equal distributions give 0.
    kl = torch.nn.functional.kl_div(
        torch.log_softmax(logits / temperature, -1),
        torch.log_softmax(whole_logits(head, teacher) / temperature, -1),
        log_target=True,
        reduction="none",
    ).sum(1)
    expected = (weights[0] * ce + weights[1] * kl).sum()
    torch.testing.assert_close(out.total, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(out.mle_N[mle], ce[mle].detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(out.divergence_N[~mle], kl[~mle].detach(), rtol=0, atol=1e-9)
    (out.total * 3).backward()
    (expected * 3).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-9)


def test_gradcheck():
    head, hidden, labels, teacher = make(softcap=4.0, rows=4)
    weights = torch.rand(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h: kernels.training_loss(h, head, labels, *weights, teacher).total, hidden.requires_grad_()
    )


def test_divergence_to_itself_is_zero():
    head, hidden, labels, _ = make()
    out = kernels.training_loss(hidden, head, labels, torch.zeros(N), torch.ones(N), hidden.clone())
    assert out.divergence_N.abs().max() < 1e-12


@pytest.mark.parametrize("rows", [0, 1])
def test_no_token_and_one_token(rows):
    head, hidden, labels, teacher = make(rows=rows)
    assert len(kernels.token_scores(hidden, head, labels).loss_N) == rows
    hidden.requires_grad_()
    out = kernels.training_loss(hidden, head, labels, torch.ones(rows), torch.zeros(rows), teacher)
    out.total.backward()
    assert hidden.grad.shape == (rows, D)
    assert len(kernels.monte_carlo_scores(hidden.detach().expand(2, rows, D), head, labels).bald_N) == rows


def test_large_logits_stay_finite():
    head, hidden, labels, teacher = make(dtype=torch.float32, magnitude=1e4)
    scores = kernels.token_scores(hidden, head, labels)
    assert scores.loss_N.isfinite().all() and scores.entropy_N.isfinite().all()
    hidden.requires_grad_()
    out = kernels.training_loss(hidden, head, labels, torch.ones(N), torch.ones(N), teacher * 1e4)
    out.total.backward()
    assert out.total.isfinite() and hidden.grad.isfinite().all()


def test_bfloat16_head_still_reduces_in_float32():
    """Trap: a log-softmax in bfloat16 has three digits."""
    head, hidden, labels, _ = make(dtype=torch.bfloat16)
    scores = kernels.token_scores(hidden, head, labels)
    logits = (hidden @ head.weight_VD.T).float()
    assert scores.loss_N.dtype == torch.float32
    torch.testing.assert_close(scores.loss_N, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))


class TestMonteCarlo:
    def test_equals_the_formulas_in_float64(self):
        head, hidden, labels, _ = make()
        samples = torch.stack([hidden + 0.3 * torch.randn_like(hidden) for _ in range(4)])
        p = torch.softmax(torch.stack([whole_logits(head, h) for h in samples]), -1)
        entropy = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
        scores = kernels.monte_carlo_scores(samples, head, labels)
        mean = p.mean(0)
        torch.testing.assert_close(scores.predictive_entropy_N, entropy(mean), rtol=0, atol=1e-9)
        torch.testing.assert_close(scores.expected_entropy_N, entropy(p).mean(0), rtol=0, atol=1e-9)
        torch.testing.assert_close(scores.bald_N, (p * (p / mean).log()).sum(-1).mean(0), rtol=0, atol=1e-9)
        torch.testing.assert_close(scores.mc_loss_N, -mean.gather(1, labels[:, None])[:, 0].log(), rtol=0, atol=1e-9)

    def test_small_disagreement_does_not_cancel_in_float32(self):
        """Trap: the difference of entropies loses BALD's digits where samples nearly agree; the mean KL does not."""
        head, hidden, labels, _ = make()
        samples = torch.stack([hidden + 1e-4 * torch.randn_like(hidden) for _ in range(4)])
        exact = kernels.monte_carlo_scores(samples, head, labels).bald_N
        head32 = Head(head.weight_VD.float())
        single = kernels.monte_carlo_scores(samples.float(), head32, labels).bald_N
        p = torch.softmax(torch.stack([whole_logits(head32, h.float()) for h in samples]), -1)
        entropy = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
        difference = entropy(p.mean(0)) - entropy(p).mean(0)
        assert (single - exact).abs().max() < (difference - exact).abs().max() / 3

    def test_equal_samples_have_no_bald(self):
        head, hidden, labels, _ = make(dtype=torch.float32)
        scores = kernels.monte_carlo_scores(hidden.expand(3, N, D), head, labels)
        assert scores.bald_N.max() < 1e-6 and scores.bald_N.min() >= 0


def test_a_trainable_head_is_refused():
    head, hidden, labels, _ = make()
    head.weight_VD.requires_grad_()
    with pytest.raises(NotImplementedError, match="head is trainable"):
        kernels.training_loss(hidden, head, labels, torch.ones(N), torch.zeros(N))
