"""Losses of other methods that the kernel computes: powers of the probability, focal loss, a top-K teacher."""

import pytest
import torch

from tests.support.kernels import V, distil_all, full_logits, random_inputs, train_all
from tokenuq_ml.kernels import label_factors
from tokenuq_ml.kernels.mean_embeddings import TeacherStates
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss


@pytest.mark.parametrize("exponent", [0.5, 3.0])
def test_a_power_of_the_probability_has_the_gradient_of_its_objective(exponent):
    """Of `(1 - p^k) / k`, against autograd; its own value is `p^k l`."""
    head, hidden, labels, _ = random_inputs()
    theirs, ours = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    ce = torch.nn.functional.cross_entropy(full_logits(head, theirs), labels, reduction="none")
    ((1 - torch.exp(-exponent * ce)) / exponent).sum().backward()
    gain = lambda z, loss, selected: label_factors.probability_power(z, loss, exponent)  # noqa: E731
    out = training_loss(ours, head, labels, train_all(), gain=gain)
    out.total.backward()
    torch.testing.assert_close(out.total, (torch.exp(-exponent * ce) * ce).sum())
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_and_its_gradient_equal_autograd(gamma):
    """The factor has a gradient here; a sure label, whose p rounds to 1, has neither loss nor NaN."""
    head, hidden, labels, _ = random_inputs()
    theirs, ours = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    ce = torch.nn.functional.cross_entropy(full_logits(head, theirs), labels, reduction="none")
    expected = ((1 - torch.exp(-ce)) ** gamma * ce).sum()
    expected.backward()
    gain = lambda z, loss, selected: label_factors.focal(z, loss, gamma)  # noqa: E731
    out = training_loss(ours, head, labels, train_all(), gain=gain)
    out.total.backward()
    torch.testing.assert_close(out.total, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    sure = label_factors.focal(torch.zeros(2, 3), torch.tensor([0.0, 1e-20]), gamma)
    assert all(part.isfinite().all() for part in sure) and (sure.value_R[0] == 0 or gamma == 0)


@pytest.mark.parametrize("name, temperature", [("forward_kl", 1.0), ("forward_kl", 2.0), ("jsd", 1.0)])
@pytest.mark.parametrize("top_k", [1, 5, V, V + 3])
def test_the_teachers_top_k_is_its_distribution_over_them(name, temperature, top_k):
    head, hidden, labels, teacher = random_inputs()
    theirs, ours = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    of_teacher = full_logits(head, teacher) / temperature
    kept = torch.zeros_like(of_teacher).scatter(1, of_teacher.topk(min(top_k, V), 1).indices, 1.0)
    q = torch.softmax(of_teacher, 1) * kept
    q = q / q.sum(1, keepdim=True)
    p = torch.softmax(full_logits(head, theirs) / temperature, 1)
    kl = lambda a, b: (torch.xlogy(a, a) - a * b.log()).sum(1)  # noqa: E731
    expected = kl(q, p) if name == "forward_kl" else (kl(q, (p + q) / 2) + kl(p, (p + q) / 2)) / 2
    expected.sum().backward()
    term = TeacherTerm(TeacherStates(teacher), name, temperature, top_k=top_k)
    out = training_loss(ours, head, labels, distil_all(), teacher=term)
    out.total.backward()
    torch.testing.assert_close(out.divergence_N, expected.detach())
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_teachers_top_k_is_biased():
    """At the teacher's own distribution the full divergence has no gradient, that to its top K has one (2503.16870)."""
    head, hidden, labels, _ = random_inputs()
    for top_k, moves in ((None, False), (3, True)):
        own = hidden.clone().requires_grad_()
        term = TeacherTerm(TeacherStates(hidden), top_k=top_k)
        training_loss(own, head, labels, distil_all(), teacher=term).total.backward()
        assert (own.grad.abs().max() > 1e-3) == moves
