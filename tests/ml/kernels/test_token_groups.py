"""Tokens with the same terms are grouped alike, whether the host counts, is told, or waits."""

import pytest
import torch

from tests.support.kernels import random_inputs, third_each
from tokenuq_ml.kernels.backend import Backend, use_backend
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.token_groups import token_groups
from tokenuq_ml.kernels.token_statistics import TokenStatistics
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision, KnownTerms, Terms, Weights

MLE, DISTILL, BOTH, NONE = Terms(True, False), Terms(False, True), Terms(True, True), Terms(False, False)


def decision(of_selected, of_rest, count=True):
    selected_N = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0]).bool()
    weights = [
        torch.where(selected_N, float(getattr(of_selected, name)), float(getattr(of_rest, name)))
        for name in Terms._fields
    ]
    known = KnownTerms(int(selected_N.sum()) if count else None, of_selected, of_rest)
    return BatchDecision(Weights(*weights), selected_N, known)


def indices(groups):
    return {group.terms: group.index_M.tolist() for group in groups if len(group.index_M)}


@pytest.mark.parametrize("of_rest", [MLE, DISTILL, BOTH, NONE])
@pytest.mark.parametrize("of_selected", [MLE, DISTILL, BOTH])
@pytest.mark.parametrize("count", [True, False])
def test_three_ways_give_the_same_groups(of_selected, of_rest, count):
    one = decision(of_selected, of_rest, count)
    expected = indices(token_groups(one, Backend("cpu")))
    assert indices(token_groups(one, Backend("torch"))) == expected
    assert indices(token_groups(BatchDecision(one.weights, one.selected_N), Backend("torch"))) == expected


def test_a_part_of_a_decision_knows_its_own_number():
    whole = decision(MLE, DISTILL)
    part = whole.part(slice(1, 6), "cpu")
    assert part.known == KnownTerms(3, MLE, DISTILL)
    assert indices(token_groups(part, Backend("torch"))) == {MLE: [0, 1, 3], DISTILL: [2, 4]}


@pytest.mark.parametrize("every_loss", [False, True])
@pytest.mark.parametrize("form", ["hidden", "means"])
def test_weights_of_0_inside_a_group_change_nothing(form, every_loss):
    """As the data's weights give them: the group is computed all the same, and the record does not show it."""
    head, hidden, labels, teacher = random_inputs()
    weights = Weights(*(weight_N * (torch.arange(13) % 2) for weight_N in third_each().weights))
    selected_N = third_each().selected_N
    known = KnownTerms(int(selected_N.sum()), MLE, DISTILL)
    states = TeacherStates(teacher) if form == "hidden" else mean_embeddings(teacher, head).states(teacher)
    outs = []
    for backend in ("cpu", "torch"):
        with use_backend(backend):
            leaf, statistics = hidden.clone().requires_grad_(), TokenStatistics(labels, hidden.dtype)
            rule = BatchDecision(weights, selected_N, known)
            out = training_loss(
                leaf,
                head,
                labels,
                rule,
                teacher=TeacherTerm(states),
                every_loss=every_loss,
                statistics=statistics,
            )
            out.total.backward()
        losses = out.loss_N if every_loss else out.loss_N * (weights.mle_N != 0)
        outs.append((out.total, losses, out.divergence_N, leaf.grad, statistics.entropy_N, statistics.is_top1_N))
    for cpu, accelerator in zip(*outs, strict=True):
        torch.testing.assert_close(accelerator, cpu)
