"""The Laplace approximation of the output layer: its curvature, prior, samples and BALD against dense computations."""

import sys

import pytest
import torch

from tests.support.tiny_models import FLOAT32, examples, tiny_peft
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.head import Head, LogitsHead
from tokenuq_ml.scoring.last_layer_laplace import (
    StateBatches,
    check_laplace,
    fitted_posterior,
    head_posterior,
    laplace_uncertainty,
)

SEED, TOKENS, VOCABULARY, FEATURES = 0, 40, 4, 3
ESTIMATORS = ("laplace", "laplace_diag")


class Tiny:
    """A head of 4 x 3, and states and labels of 40 tokens."""

    def __init__(self):
        draw = torch.Generator().manual_seed(SEED)
        self.weight_VD = torch.randn(VOCABULARY, FEATURES, generator=draw)
        self.hidden_ND = torch.randn(TOKENS, FEATURES, generator=draw).double()
        self.label_N = torch.randint(0, VOCABULARY, (TOKENS,), generator=draw)

    def loss(self, weight: torch.Tensor) -> torch.Tensor:
        logits = self.hidden_ND @ weight.reshape(VOCABULARY, FEATURES).T
        return torch.nn.functional.cross_entropy(logits, self.label_N, reduction="sum")

    def batches(self) -> StateBatches:
        """All tokens, in batches of different sizes."""

        def batches():
            yield from zip(self.hidden_ND.split(16), self.label_N.split(16), strict=True)

        return StateBatches(range(TOKENS), batches)

    def hessian(self, estimator: str) -> torch.Tensor:
        """`[V D, V D]` in float64: the exact Hessian's diagonal; or the Kronecker product, token by token."""
        flat = self.weight_VD.double().flatten()
        if estimator == "laplace_diag":
            return torch.autograd.functional.hessian(self.loss, flat).diag().diag()
        p_NV = (self.hidden_ND @ self.weight_VD.double().T).softmax(-1)
        outputs = sum(torch.diag(p) - torch.outer(p, p) for p in p_NV)
        inputs = sum(torch.outer(h, h) for h in self.hidden_ND) / TOKENS
        return torch.kron(outputs, inputs)

    def evidence(self, estimator: str, precision: float) -> float:
        """The log marginal likelihood of a prior precision, up to terms that do not depend on it and cancel."""
        flat, eye = self.weight_VD.double().flatten(), torch.eye(VOCABULARY * FEATURES, dtype=torch.float64)
        posterior, prior = self.hessian(estimator) + precision * eye, precision * eye
        ratio = torch.logdet(posterior) - torch.logdet(prior)
        return float(-self.loss(flat) - 0.5 * (ratio + precision * flat @ flat))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_prior_and_samples_are_those_of_a_dense_computation(estimator):
    pytest.importorskip("laplace")
    tiny = Tiny()
    found = fitted_posterior(estimator, Head(tiny.weight_VD), tiny.batches(), 20_000, SEED)
    # The precision maximises the evidence, which is the one of dense matrices.
    best = found.prior_precision
    assert found.log_marginal_likelihood == pytest.approx(tiny.evidence(estimator, best), abs=1e-4)
    for other in (best / 1.3, best * 1.3):
        assert tiny.evidence(estimator, other) < tiny.evidence(estimator, best)
    covariance = torch.linalg.inv(tiny.hessian(estimator) + best * torch.eye(VOCABULARY * FEATURES))
    samples = found.weight_KVD.flatten(1).double()
    assert found.weight_KVD.dtype == torch.float32 and found.tokens == TOKENS
    assert (samples.mean(0) - tiny.weight_VD.flatten()).abs().max() < 0.05 * covariance.diag().max().sqrt()
    assert (samples.T.cov() - covariance).abs().max() < 0.05 * covariance.diag().max()


def test_the_exact_hessian_is_that_of_the_softmax():
    """The Kronecker factors of one token give its exact Hessian, because then nothing is averaged."""
    pytest.importorskip("laplace")
    from tokenuq_ml.scoring.softmax_curvature import SoftmaxCurvature

    tiny = Tiny()
    tiny.hidden_ND, tiny.label_N = tiny.hidden_ND[:1], tiny.label_N[:1]
    layer = torch.nn.Linear(FEATURES, VOCABULARY, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(tiny.weight_VD)
    loss, kron = SoftmaxCurvature(layer, "classification").kron(tiny.hidden_ND, tiny.label_N, N=1)
    flat = tiny.weight_VD.double().flatten()
    torch.testing.assert_close(kron.to_matrix(), torch.autograd.functional.hessian(tiny.loss, flat))
    torch.testing.assert_close(loss, tiny.loss(flat))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bald_is_that_of_the_sampled_output_layers(estimator):
    pytest.importorskip("laplace")
    model, rows, counted = tiny_peft().eval(), examples(4), []
    spec = UncertaintySpec(samples=5, seed=3)
    posterior = head_posterior(estimator, model, rows, spec, FLOAT32, counted.append)
    assert posterior.tokens == sum(len(row.positions) for row in rows)
    found = laplace_uncertainty(model, posterior, rows, FLOAT32)
    for row in rows:
        at = [position - 1 for position in row.positions]
        with torch.no_grad():
            states = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[-1][0, at]
        p_KNV = torch.stack([states.double() @ weight.double().T for weight in posterior.weight_KVD]).softmax(-1)
        entropy = lambda p: -(p * p.log()).sum(-1)  # noqa: E731
        bald = entropy(p_KNV.mean(0)) - entropy(p_KNV).mean(0)
        own = found.filter(example_id=row.example_id)
        assert own["position"].to_list() == row.positions
        assert own["bald"].to_list() == pytest.approx(bald.tolist(), rel=1e-3, abs=1e-6)
    assert found["bald"].min() > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_samples_depend_on_the_seed_alone(estimator):
    pytest.importorskip("laplace")
    tiny = Tiny()
    first, again, other = (
        fitted_posterior(estimator, Head(tiny.weight_VD), tiny.batches(), 2, seed).weight_KVD for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_output_layer_that_is_too_large_is_refused_with_its_size():
    head = Head(torch.empty(49_152, 576, device="meta"))
    with pytest.raises(InputError, match=r"would take \d+\.\d GB for an output layer of 49,152 x 576"):
        check_laplace("laplace", head, 10)


@pytest.mark.parametrize(
    "head",
    [
        LogitsHead.of(7, torch.float32, torch.device("cpu")),
        Head(torch.ones(4, 3), bias_V=torch.ones(4)),
        Head(torch.ones(4, 3), softcap=5.0),
        Head(torch.ones(4, 3), scale=0.5),
    ],
)
def test_an_output_layer_that_is_more_than_a_matrix_is_refused(head):
    with pytest.raises(InputError, match="needs an output layer that is one matrix"):
        check_laplace("laplace_diag", head, 10)


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace", None)
    with pytest.raises(InputError, match="needs the package laplace-torch .* install the extra 'laplace'"):
        check_laplace("laplace", Head(torch.ones(4, 3)), 10)
