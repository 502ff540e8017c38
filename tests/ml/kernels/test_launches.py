"""An accelerator gets few launches, and the host waits for none of them: on fake tensors of a real size."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.support.dispatched import Launches
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.kernels import backend as backends
from tokenuq_ml.kernels.backend import use_backend
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates
from tokenuq_ml.kernels.scores import monte_carlo_scores, token_scores
from tokenuq_ml.kernels.token_statistics import TokenStatistics
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision, KnownTerms, Terms, Weights
from tokenuq_ml.training.selection import extreme_quantile

N, D, V, K = 4096, 2048, 128_256, 10
"""A step of Llama-3.2-1B with 4,096 response tokens."""
BUDGET = 200


@pytest.fixture(autouse=True)
def fake_triton(monkeypatch):
    """Let the backend `triton` be chosen where it is not installed: a fake tensor launches no kernel."""
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    backends._backend.cache_clear()
    yield
    backends._backend.cache_clear()


class Rule:
    """Cross-entropy for a quarter of the tokens, divergence for the rest."""

    def __init__(self, needs_losses=True, is_known=True):
        self.needs_losses, self.is_known = needs_losses, is_known

    def decide(self, loss_N):
        selected_N, zeros_N = extreme_quantile(loss_N, 0.25), torch.zeros_like(loss_N)
        weights = Weights(zeros_N.masked_fill(selected_N, 1.0), zeros_N.masked_fill(~selected_N, 1.0))
        known = KnownTerms(count_selected(0.25, len(loss_N)), Terms(True, False), Terms(False, True))
        return BatchDecision(weights, selected_N, known if self.is_known else None)


def mle():
    ones_N = torch.ones(N)
    return BatchDecision(Weights(ones_N, ones_N * 0), ones_N > 0, KnownTerms(N, Terms(True, False), Terms(True, False)))


def launches(backend, run) -> int:
    """Return the launches of a forward and a backward pass; fails if the host reads a number."""
    with FakeTensorMode(), use_backend(backend), Launches() as seen:
        empty = partial(torch.empty, dtype=torch.bfloat16)
        seen.counts.clear()
        run(Head(empty(V, D)), empty(N, D).requires_grad_(), torch.empty(N, dtype=torch.long), empty(N, D))
    return seen.total


def hidden_states(head, hidden, labels, teacher, name="forward_kl", **kwargs):
    rule = kwargs.pop("rule", None) or Rule()
    training_loss(
        hidden, head, labels, rule, teacher=TeacherTerm(TeacherStates(teacher), name), **kwargs
    ).total.backward()


def mean_embeddings(head, hidden, labels, teacher, **kwargs):
    states = TeacherStates(mean_ND=teacher, offset_N=torch.empty(N))
    training_loss(hidden, head, labels, Rule(), teacher=TeacherTerm(states), **kwargs).total.backward()


def with_statistics(run, *inputs):
    run(*inputs, statistics=TokenStatistics(inputs[2], torch.float32))


def every_loss(*inputs):
    hidden_states(*inputs, rule=Rule(needs_losses=False), every_loss=True)


CASES = {
    "the paper's objective from hidden states": hidden_states,
    "the paper's objective from mean embeddings": mean_embeddings,
    "with statistics, from hidden states": partial(with_statistics, hidden_states),
    "with statistics, from mean embeddings": partial(with_statistics, mean_embeddings),
    "with every loss": every_loss,
    "maximum likelihood": lambda head, hidden, labels, _: training_loss(hidden, head, labels, mle()).total.backward(),
    "scores": lambda head, hidden, labels, _: token_scores(hidden.detach(), head, labels),
    "one of ten samples of BALD": lambda head, hidden, labels, _: monte_carlo_scores(
        hidden.detach().expand(K, N, D).contiguous(), head, labels
    ),
}
MOST = {"maximum likelihood": 50, "scores": 10, "one of ten samples of BALD": 60}


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_the_head_launches_few_kernels_and_waits_for_none(case):
    """65,943 launches, and 828 ms where a product of all tokens takes 2.7, before rows followed the device."""
    assert launches("triton", CASES[case]) <= MOST.get(case, 100)


@pytest.mark.parametrize("case", ["the paper's objective from hidden states", "maximum likelihood", "scores"])
def test_without_triton_a_step_stays_within_the_budget(case):
    assert launches("torch", CASES[case]) <= BUDGET


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("name", ["jsd", "reverse_kl"])
def test_a_divergence_that_is_not_fused_stays_within_the_budget(name, backend):
    assert launches(backend, partial(hidden_states, name=name)) <= BUDGET


def test_a_decision_that_the_host_does_not_know_is_the_one_that_waits():
    with pytest.raises(DataDependentOutputException):
        launches("triton", partial(hidden_states, rule=Rule(is_known=False)))
