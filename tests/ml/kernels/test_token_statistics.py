"""Entropy and top-1 accuracy that the kernels read off their blocks equal those of full logits, at no head product."""

import pytest
import torch

from tests.support.kernels import (
    HEADS,
    TRAIN_HALF_DISTIL_HALF,
    N,
    distil_all,
    full_logits,
    head_products,
    random_inputs,
    third_each,
    train_all,
)
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.token_statistics import TokenStatistics
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss


def assert_statistics(statistics, logits, labels, counted) -> None:
    """Assert that the statistics are those of `counted` tokens, from full logits in plain PyTorch."""
    expected = torch.distributions.Categorical(logits=logits).entropy()
    assert torch.equal(statistics.counted_N, counted)
    torch.testing.assert_close(statistics.entropy_N[counted], expected[counted], rtol=1e-12, atol=1e-12)
    assert torch.equal(statistics.is_top1_N[counted], (logits.argmax(-1) == labels)[counted])
    assert not statistics.entropy_N[~counted].any() and not statistics.is_top1_N[~counted].any()


DECISIONS = {"train": train_all, "distil": distil_all, "both": third_each, "by loss": lambda: TRAIN_HALF_DISTIL_HALF}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", DECISIONS)
@pytest.mark.parametrize("kwargs", HEADS)
def test_statistics_are_of_the_tokens_whose_logits_are_computed(kwargs, name, temperature):
    """The temperature of distillation is not that of the entropy."""
    head, hidden, labels, teacher = random_inputs(**kwargs)
    logits, rule = full_logits(head, hidden), DECISIONS[name]()
    labels[:4] = logits.argmax(-1)[:4]
    statistics = TokenStatistics(labels, torch.float64)
    term = TeacherTerm(TeacherStates(teacher), temperature=temperature)
    training_loss(hidden, head, labels, rule, teacher=term, statistics=statistics)
    counted = torch.ones(N, dtype=torch.bool)
    if not rule.needs_losses:
        counted = (rule.weights.mle_N > 0) | (rule.weights.distill_N > 0)
    assert_statistics(statistics, logits, labels, counted)


@pytest.mark.parametrize("every_loss", [False, True])
@pytest.mark.parametrize("form", ["hidden", "mean_embeddings"])
def test_statistics_count_the_tokens_whose_losses_are_recorded(form, every_loss):
    head, hidden, labels, teacher = random_inputs()
    states = mean_embeddings(teacher, head).states(teacher) if form == "mean_embeddings" else TeacherStates(teacher)
    decision, statistics = third_each(), TokenStatistics(labels, torch.float64)
    training_loss(
        hidden, head, labels, decision, teacher=TeacherTerm(states), every_loss=every_loss, statistics=statistics
    )
    trained = (decision.weights.mle_N > 0) | (decision.weights.distill_N > 0)
    assert_statistics(statistics, full_logits(head, hidden), labels, trained | every_loss)


@pytest.mark.parametrize("name", DECISIONS)
def test_statistics_change_neither_the_loss_nor_its_gradient_nor_the_head_products(name, monkeypatch):
    head, hidden, labels, teacher = random_inputs(torch.float32)
    results, products = [], []
    for statistics in (None, TokenStatistics(labels, torch.float32)):
        leaf = hidden.clone().requires_grad_()

        def run(leaf=leaf, statistics=statistics):
            term = TeacherTerm(TeacherStates(teacher))
            out = training_loss(leaf, head, labels, DECISIONS[name](), teacher=term, statistics=statistics)
            out.total.backward()
            results.append((out.total, out.loss_N, leaf.grad))

        with monkeypatch.context() as patch:
            products.append(head_products(patch, run))
    assert products[0] == products[1]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_of_several_likeliest_tokens_only_the_first_counts():
    """As in TRL; 16-bit logits often tie."""
    head = Head(torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64))
    labels, hidden = torch.tensor([0, 1, 2]), torch.ones(3, 1, dtype=torch.float64)
    statistics = TokenStatistics(labels, torch.float64)
    training_loss(hidden, head, labels, train_all(3), statistics=statistics)
    assert statistics.is_top1_N.tolist() == [False, True, False]
