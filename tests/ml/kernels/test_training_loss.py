"""The training loss and its gradient equal plain PyTorch with full logits, at the stated cost."""

import dataclasses

import pytest
import torch

from tests.support.kernels import (
    HEADS,
    TRAIN_HALF_DISTIL_HALF,
    D,
    N,
    RuleFromLosses,
    distil_all,
    full_logits,
    head_products,
    plain_divergence,
    plain_loss,
    random_inputs,
    third_each,
    train_all,
)
from tokenuq_ml.kernels import label_factors
from tokenuq_ml.kernels.backend import backend_of
from tokenuq_ml.kernels.head import Head, LogitsHead
from tokenuq_ml.kernels.label_factors import without_gradient
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.scores import token_scores
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision, Weights

DIVERGENCES = ["forward_kl", "reverse_kl", "jsd"]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("kwargs", HEADS)
def test_loss_and_gradients_equal_autograd(kwargs, name, temperature, dtype, tolerance):
    """Gradients with respect to hidden states, weight and bias, against float64 with full logits."""
    head, hidden, labels, teacher = random_inputs(**kwargs)
    decision = third_each()
    theirs = [hidden.clone().requires_grad_(), head.weight_VD.requires_grad_()]
    if head.bias_V is not None:
        theirs.append(head.bias_V.requires_grad_())
    expected, ce, divergence = plain_loss(head, theirs[0], labels, decision, teacher, name, temperature)
    (expected * 3).backward()
    ours = [x.detach().to(dtype).requires_grad_() for x in theirs]
    own_head = dataclasses.replace(head, weight_VD=ours[1], bias_V=ours[2] if len(ours) > 2 else None)
    frozen = dataclasses.replace(
        own_head, weight_VD=ours[1].detach(), bias_V=ours[2].detach() if len(ours) > 2 else None
    )
    term = TeacherTerm(TeacherStates(teacher.to(dtype)), name, temperature, frozen)
    out = training_loss(ours[0], own_head, labels, decision, teacher=term)
    (out.total * 3).backward()
    close = lambda a, b: torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)  # noqa: E731
    close(out.total, expected)
    trained, distilled = (weight_N > 0 for weight_N in decision.weights)
    close(out.loss_N[trained], ce[trained])
    close(out.divergence_N[distilled], divergence[distilled])
    for mine, plain in zip(ours, theirs, strict=True):
        assert mine.grad.dtype == dtype
        close(mine.grad, plain.grad)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_equal_finite_differences(name):
    head, hidden, labels, teacher = random_inputs(softcap=4.0, bias=True, rows=4)
    decision = BatchDecision.of_weights(torch.rand(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64))

    def total(h, weight, bias):
        term = TeacherTerm(TeacherStates(teacher), name, 1.5, head)
        return training_loss(h, Head(weight, bias, softcap=4.0), labels, decision, teacher=term).total

    leaves = hidden.requires_grad_(), head.weight_VD.clone().requires_grad_(), head.bias_V.clone().requires_grad_()
    assert torch.autograd.gradcheck(total, leaves)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_divergence_of_equal_distributions_and_its_gradient_are_zero(name):
    head, hidden, labels, _ = random_inputs()
    term = TeacherTerm(TeacherStates(hidden.clone()), name)
    out = training_loss(hidden.requires_grad_(), head, labels, distil_all(), teacher=term)
    out.total.backward()
    assert out.divergence_N.abs().max() < 1e-12 and hidden.grad.abs().max() < 1e-12


@pytest.mark.parametrize("form", ["hidden", "means"])
def test_a_rule_that_needs_losses_gets_those_of_every_token_and_its_decision_is_returned(form):
    head, hidden, labels, teacher = random_inputs()
    ce = torch.nn.functional.cross_entropy(full_logits(head, hidden), labels, reduction="none")
    states = TeacherStates(teacher) if form == "hidden" else mean_embeddings(teacher, head).states(teacher)
    seen = []

    def decide(loss_N):
        seen.append(loss_N.clone())
        return TRAIN_HALF_DISTIL_HALF.decide(loss_N)

    out = training_loss(hidden, head, labels, RuleFromLosses(decide), teacher=TeacherTerm(states))
    torch.testing.assert_close(seen, [ce], rtol=0, atol=1e-9)
    torch.testing.assert_close(out.loss_N, ce, rtol=0, atol=1e-9)
    assert torch.equal(out.selected_N, ce >= ce.median())
    assert torch.equal(out.weights.mle_N > 0, out.selected_N)


@pytest.mark.parametrize("form", ["hidden", "means"])
def test_a_rule_that_needs_no_losses_gets_zeros(form):
    head, hidden, labels, teacher = random_inputs()
    states = TeacherStates(teacher) if form == "hidden" else mean_embeddings(teacher, head).states(teacher)
    seen = []

    class Rule:
        needs_losses = False

        def decide(self, loss_N):
            seen.append(loss_N.clone())
            return third_each()

    training_loss(hidden, head, labels, Rule(), teacher=TeacherTerm(states))
    assert torch.equal(torch.stack(seen), torch.zeros(1, N, dtype=torch.float64))


@pytest.mark.parametrize(
    "case, products", [("mle", 2), ("means", 2), ("hidden", 1 + 7 / 13 * 2 + 6 / 13 * 3), ("scores", 1)]
)
def test_head_products_are_as_documented(case, products, monkeypatch):
    head, hidden, labels, teacher = random_inputs()
    hidden.requires_grad_()
    hidden_term = TeacherTerm(TeacherStates(teacher))
    means_term = TeacherTerm(mean_embeddings(teacher, head).states(teacher))
    run = {
        "mle": lambda: training_loss(hidden, head, labels, train_all()),
        "means": lambda: training_loss(hidden, head, labels, TRAIN_HALF_DISTIL_HALF, teacher=means_term),
        "hidden": lambda: training_loss(hidden, head, labels, TRAIN_HALF_DISTIL_HALF, teacher=hidden_term),
        "scores": lambda: token_scores(hidden.detach(), head, labels),
    }[case]
    if case == "hidden" and backend_of(hidden).is_accelerator:
        # The product that gave the losses is kept for the gradients.
        products -= 1
    assert head_products(monkeypatch, run) == pytest.approx(products)


@pytest.mark.parametrize("kwargs", [{}, {"softcap": 3.0}, {"scale": 0.5}])
@pytest.mark.parametrize("name", ["probability", "top_entropy"])
def test_a_gain_multiplies_the_loss_without_a_gradient_or_head_product_of_its_own(name, kwargs, monkeypatch):
    """DFT and EAFT against plain PyTorch with detach()."""
    head, hidden, labels, _ = random_inputs(**kwargs)
    theirs = hidden.clone().requires_grad_()
    logits = full_logits(head, theirs)
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    if name == "probability":
        factor = torch.exp(-ce)
    else:
        p = torch.softmax(torch.sort(logits, dim=1, descending=True).values[:, :20], -1)
        factor = torch.distributions.Categorical(p).entropy() / 3
    half = (torch.arange(N) % 2).double()
    expected = (half * factor.detach() * ce).sum()
    expected.backward()
    ours, formula = hidden.clone().requires_grad_(), getattr(label_factors, name)
    decision = BatchDecision.of_weights(half, torch.zeros(N, dtype=torch.float64))
    outs = []
    run = lambda: outs.append(  # noqa: E731
        training_loss(ours, head, labels, decision, gain=lambda z, loss, selected: formula(z, loss))
    )
    assert head_products(monkeypatch, run) == pytest.approx(2 * int(half.sum()) / N)
    outs[0].total.backward()
    torch.testing.assert_close(outs[0].total, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outs[0].weights.mle_N, half * torch.where(half > 0, factor.detach(), 1.0))


def test_a_gain_gets_the_mask_of_its_rows():
    head, hidden, labels, _ = random_inputs()
    selected = torch.arange(N) % 3 == 0
    decision = BatchDecision(Weights(torch.ones(N), torch.zeros(N)), selected)
    gain = lambda z, loss, selected_R: without_gradient(torch.where(selected_R, 2.0, 0.5).to(loss))  # noqa: E731
    out = training_loss(hidden, head, labels, decision, gain=gain)
    assert torch.equal(out.weights.mle_N, torch.where(selected, 2.0, 0.5).double())


@pytest.mark.parametrize("form, products", [("hidden", 3), ("means", 2)])
@pytest.mark.parametrize("with_gain", [False, True])
def test_both_losses_of_a_token_share_its_logits(form, products, with_gain, monkeypatch):
    """Cross-entropy, with a negative weight too, and divergence summed: gradient of autograd, at the stated cost."""
    head, hidden, labels, teacher = random_inputs()
    generator = torch.Generator().manual_seed(1)
    weights = Weights(*torch.rand(2, N, generator=generator, dtype=torch.float64))
    weights.mle_N[3] *= -1
    # Weights that cancel are weights nevertheless.
    weights.distill_N[3] = -weights.mle_N[3]
    decision = BatchDecision(weights, torch.ones(N, dtype=torch.bool))
    theirs, ours = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    if form == "means" and with_gain:
        pytest.skip("mean embeddings have no gain")
    states = TeacherStates(teacher) if form == "hidden" else mean_embeddings(teacher, head).states(teacher)
    logits = full_logits(head, theirs)
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    divergence = plain_divergence("forward_kl", logits, full_logits(head, teacher), 1.0)
    factor = torch.exp(-ce.detach()) if with_gain else 1.0
    expected = (weights.mle_N * factor * ce + weights.distill_N * divergence).sum()
    expected.backward()
    gain = (lambda z, loss, selected: label_factors.probability(z, loss)) if with_gain else None
    outs = []
    run = lambda: outs.append(  # noqa: E731
        training_loss(ours, head, labels, decision, teacher=TeacherTerm(states), gain=gain)
    )
    assert head_products(monkeypatch, run) == pytest.approx(products)
    outs[0].total.backward()
    torch.testing.assert_close(outs[0].total, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(outs[0].divergence_N, divergence.detach())


@pytest.mark.parametrize("divergence, form", [("jsd", "hidden"), ("forward_kl", "hidden"), ("forward_kl", "means")])
def test_every_loss_costs_a_product_only_for_tokens_without_weight(divergence, form, monkeypatch):
    """A third each is trained, distilled and left out; only the last third costs one product more."""
    head, hidden, labels, teacher = random_inputs()
    decision = third_each()
    states = TeacherStates(teacher) if form == "hidden" else mean_embeddings(teacher, head).states(teacher)
    term = TeacherTerm(states, divergence)
    expected = torch.nn.functional.cross_entropy(full_logits(head, hidden), labels, reduction="none")
    outs, products = [], []
    for every in (True, False):
        run = lambda every=every: outs.append(  # noqa: E731
            training_loss(hidden, head, labels, decision, teacher=term, every_loss=every)
        )
        with monkeypatch.context() as patch:
            products.append(head_products(patch, run))
    torch.testing.assert_close(outs[0].loss_N, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(outs[0].total, outs[1].total, rtol=0, atol=1e-9)
    left_out = (decision.weights.mle_N == 0) & (decision.weights.distill_N == 0)
    assert products[0] - products[1] == pytest.approx(int(left_out.sum()) / N)


def test_distilling_without_a_teacher_raises():
    head, hidden, labels, _ = random_inputs()
    with pytest.raises(ValueError, match="there is no teacher"):
        training_loss(hidden, head, labels, third_each())


@pytest.mark.parametrize("rows", [0, 1])
def test_no_token_and_one_token_have_a_gradient(rows):
    head, hidden, labels, teacher = random_inputs(rows=rows)
    hidden.requires_grad_()
    out = training_loss(hidden, head, labels, train_all(rows), teacher=TeacherTerm(TeacherStates(teacher)))
    out.total.backward()
    assert hidden.grad.shape == (rows, D)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_large_logits_have_a_finite_loss_and_gradient(name):
    head, hidden, labels, teacher = random_inputs(dtype=torch.float32, magnitude=1e4)
    hidden.requires_grad_()
    decision = BatchDecision.of_weights(torch.ones(N), torch.ones(N))
    out = training_loss(hidden, head, labels, decision, teacher=TeacherTerm(TeacherStates(teacher * 1e4), name))
    out.total.backward()
    assert out.total.isfinite() and hidden.grad.isfinite().all()


def test_a_model_s_own_logits_give_the_same_loss_and_the_gradient_of_the_logits():
    """`LogitsHead`: autograd carries the gradient on to what computed the logits."""
    head, hidden, labels, teacher = random_inputs(bias=True, scale=0.7, rows=6)
    decision = BatchDecision.of_weights(torch.tensor([1.0, 0, 1, 0, 2, 0]), torch.tensor([0, 1.0, 0, 0.5, 0, 1]))
    leaf = hidden.detach().requires_grad_()
    expected = training_loss(leaf, head, labels, decision, teacher=TeacherTerm(TeacherStates(teacher)))
    expected.total.backward()
    own = hidden.detach().requires_grad_()
    logits, of_teacher = full_logits(head, own), full_logits(head, teacher)
    logits_head = LogitsHead.of(head.vocabulary, logits.dtype, logits.device)
    got = training_loss(logits, logits_head, labels, decision, teacher=TeacherTerm(TeacherStates(of_teacher)))
    got.total.backward()
    assert torch.allclose(got.total, expected.total) and torch.allclose(got.loss_N, expected.loss_N)
    assert torch.allclose(own.grad, leaf.grad, atol=1e-6)
    assert logits_head.features == head.vocabulary and not logits_head.is_linear
