"""Mean embeddings give the loss and gradient of hidden states, with two head products per token."""

import dataclasses

import pytest
import torch

from tests.support.kernels import (
    LINEAR_HEADS,
    D,
    N,
    RuleFromLosses,
    distil_all,
    full_logits,
    plain_loss,
    random_inputs,
    third_each,
)
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision


@pytest.mark.parametrize("kwargs", LINEAR_HEADS)
def test_mean_embeddings_are_the_gradient_of_log_sum_exp(kwargs):
    head, hidden, labels, _ = random_inputs(**kwargs)
    hidden.requires_grad_()
    lse = full_logits(head, hidden).logsumexp(-1)
    lse.sum().backward()
    means = mean_embeddings(hidden.detach(), head, labels)
    torch.testing.assert_close(means.lse_N, lse.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(means.mean_ND, hidden.grad, rtol=0, atol=1e-9)
    expected = torch.nn.functional.cross_entropy(full_logits(head, hidden), labels, reduction="none")
    torch.testing.assert_close(means.loss_N, expected.detach(), rtol=0, atol=1e-9)


def test_a_head_that_soft_caps_raises():
    head, hidden, _, _ = random_inputs(softcap=5.0)
    with pytest.raises(ValueError, match="linear in the hidden state"):
        mean_embeddings(hidden, head)


@pytest.mark.parametrize("needs_losses", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kwargs", LINEAR_HEADS)
def test_loss_and_gradient_equal_those_of_full_logits(kwargs, dtype, tolerance, needs_losses):
    head, hidden, labels, teacher = random_inputs(**kwargs)
    decision = third_each()
    theirs = hidden.clone().requires_grad_()
    expected, ce, divergence = plain_loss(head, theirs, labels, decision, teacher)
    expected.backward()
    bias = None if head.bias_V is None else head.bias_V.to(dtype)
    own = dataclasses.replace(head, weight_VD=head.weight_VD.to(dtype), bias_V=bias)
    ours, seen = hidden.to(dtype).requires_grad_(), []
    states = mean_embeddings(teacher.to(dtype), own).states(teacher.to(dtype))
    rule = RuleFromLosses(lambda loss_N: seen.append(loss_N.clone()) or decision) if needs_losses else decision
    out = training_loss(ours, own, labels, rule, teacher=TeacherTerm(states))
    out.total.backward()
    close = lambda a, b: torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)  # noqa: E731
    close(out.total, expected)
    distilled = decision.weights.distill_N > 0
    close(out.divergence_N[distilled], divergence[distilled])
    close(ours.grad, theirs.grad)
    if needs_losses:
        close(seen[0], ce)
        close(out.loss_N, ce)


def test_a_student_equal_to_its_teacher_has_no_gradient_in_bfloat16():
    """The cached values were rounded as the student's own are, so they cancel exactly."""
    head, hidden, labels, _ = random_inputs(dtype=torch.bfloat16)
    states = mean_embeddings(hidden, head).states(hidden)
    hidden.requires_grad_()
    out = training_loss(hidden, head, labels, distil_all(), teacher=TeacherTerm(states))
    out.total.backward()
    assert out.divergence_N.abs().max() < 1e-5 and hidden.grad.abs().max() == 0


def test_the_mean_divergence_and_gradients_are_as_accurate_as_from_hidden_states_in_bfloat16():
    """A small divergence of large logits, whose rounding exceeds it on single tokens."""
    rows = 400
    head, hidden, labels, _ = random_inputs(rows=rows, magnitude=3.0)
    head = Head(head.weight_VD.bfloat16())
    teacher = hidden.bfloat16()
    student = (hidden + 0.1 * torch.randn(rows, D, generator=torch.Generator().manual_seed(1))).bfloat16()
    outcomes = {}
    means = mean_embeddings(teacher, head).states(teacher)
    exact_head = Head(head.weight_VD.double())
    for name, own, states in (
        ("exact", exact_head, TeacherStates(teacher.double())),
        ("hidden", head, TeacherStates(teacher)),
        ("means", head, means),
    ):
        leaf = student.to(own.weight_VD.dtype, copy=True).requires_grad_()
        out = training_loss(leaf, own, labels, distil_all(rows), teacher=TeacherTerm(states))
        out.total.backward()
        outcomes[name] = out.divergence_N.double(), leaf.grad.double()
    exact, exact_grad = outcomes["exact"]
    errors = {name: (grad - exact_grad).norm() / exact_grad.norm() for name, (_, grad) in outcomes.items()}
    assert outcomes["means"][0].min() < 0
    standard_error = (outcomes["means"][0] - exact).std() / rows**0.5
    assert abs(outcomes["means"][0].mean() - exact.mean()) < 4 * standard_error
    assert errors["means"] < 1.25 * errors["hidden"]


@pytest.mark.parametrize("rows", [0, 1])
def test_no_token_and_one_token_have_a_gradient(rows):
    head, hidden, labels, teacher = random_inputs(rows=rows)
    states = mean_embeddings(teacher, head).states(teacher)
    hidden.requires_grad_()
    rule = RuleFromLosses(lambda loss_N: BatchDecision.of_weights(torch.ones_like(loss_N), torch.ones_like(loss_N)))
    training_loss(hidden, head, labels, rule, teacher=TeacherTerm(states)).total.backward()
    assert hidden.grad.shape == (rows, D)


@pytest.mark.parametrize(
    "head_kwargs, term_kwargs, gain",
    [
        ({"softcap": 5.0}, {}, None),
        ({}, {"divergence": "jsd"}, None),
        ({}, {"temperature": 2.0}, None),
        ({}, {}, lambda *_: 1.0),
    ],
    ids=["softcap", "jsd", "temperature", "gain"],
)
def test_a_loss_that_mean_embeddings_cannot_give_raises(head_kwargs, term_kwargs, gain):
    head, hidden, labels, teacher = random_inputs(**head_kwargs)
    states = TeacherStates(mean_ND=teacher, offset_N=torch.zeros(N))
    with pytest.raises(ValueError, match="mean embeddings give only forward KL at temperature 1"):
        training_loss(hidden, head, labels, third_each(), teacher=TeacherTerm(states, **term_kwargs), gain=gain)


def test_a_trainable_head_with_mean_embeddings_raises():
    head, hidden, labels, teacher = random_inputs()
    states = mean_embeddings(teacher, head).states(teacher)
    head.weight_VD.requires_grad_()
    with pytest.raises(ValueError, match="trainable head True"):
        training_loss(hidden, head, labels, third_each(), teacher=TeacherTerm(states))
