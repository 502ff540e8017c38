"""BALD from a Laplace approximation of the output layer's weight, over the teacher's hidden states of the train split.

A normal posterior of the weight (MacKay 1992; Daxberger et al. 2021, arXiv 2106.14806) around the teacher's own, by
laplace-torch: Kronecker-factored or diagonal, with a normal prior around 0 whose precision maximises the marginal
likelihood. The adapter, which has changed the states, is held fixed.

Shapes: N response tokens of a batch, D hidden size, V vocabulary, K samples.
"""

import warnings
from collections.abc import Callable, Generator, Iterator, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import polars as pl
import torch
from torch import Tensor, nn

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.config.estimators import LAPLACE, too_large
from tokenuq_ml.data.batching import Batch, TokenizedExample
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.head import Head, LogitsHead
from tokenuq_ml.kernels.scores import MonteCarloScores, sampled_head_scores
from tokenuq_ml.models.adapters import TrainedModel
from tokenuq_ml.models.fast_inference import fast_inference
from tokenuq_ml.models.float32_passes import float32_passes
from tokenuq_ml.models.forward import causal_lm, head_of, hidden_states
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.batch_threads import BatchPlan, map_batches
from tokenuq_ml.scoring.finite_scores import located
from tokenuq_ml.scoring.mc_dropout import uncertainty_rows
from tokenuq_ml.tables.schemas import TOKEN_KEY

PRIOR_STEPS = 300
"""Steps of the search for the prior precision."""
EXTRA = "laplace"
"""The extra of the package that installs laplace-torch."""
Progress = Callable[[int], None]


class HeadPosterior(NamedTuple):
    """Samples of the output layer's weight."""

    head: Head
    weight_KVD: Tensor
    prior_precision: float
    log_marginal_likelihood: float
    tokens: int
    """Response tokens that the posterior is from."""


def check_laplace(estimator: str, head: Head, samples: int) -> None:
    """Check that the posterior can be computed.

    Raises:
        InputError: the head is not linear, laplace-torch is missing, or memory would exceed `LAPLACE_LIMIT`.
    """
    if isinstance(head, LogitsHead) or head.bias_V is not None or not head.is_linear or head.scale != 1.0:
        raise InputError(
            f"{estimator!r} needs an output layer that is one matrix, and this model's has a bias, a soft cap, a scale "
            f"or an adapter; remove {estimator!r} from uncertainty.estimators"
        )
    if problem := too_large(estimator, head.vocabulary, head.features, samples):
        raise InputError(problem)
    try:
        import laplace  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{estimator!r} needs the package laplace-torch ({error}); install the extra {EXTRA!r}, or remove "
            f"{estimator!r} from uncertainty.estimators"
        ) from None


def head_posterior(
    estimator: str,
    model: TrainedModel,
    examples: list[TokenizedExample],
    spec: UncertaintySpec,
    numerics: Numerics,
    progress: Progress = lambda tokens: None,
) -> HeadPosterior:
    """Fit the posterior to the response tokens of `examples`, one pass of the model, and draw `spec.samples` weights.

    Args:
        estimator: `laplace` or `laplace_diag`.
        model: with the teacher's adapter active.
        examples: the train split.
        spec: samples and seed.
        numerics: device and threads; its dtype is not used.
        progress: called with the number of tokens of each batch that is done.

    Raises:
        InputError: see `check_laplace`.
    """
    with float32_passes(model) as dtype:
        numerics, head = replace(numerics, dtype=dtype), head_of(model)
        check_laplace(estimator, head, spec.samples)
        batches = StateBatches(
            range(sum(len(example.positions) for example in examples)),
            lambda: _states(model, examples, numerics, progress),
        )
        return fitted_posterior(estimator, head, batches, spec.samples, spec.seed)


@dataclass(frozen=True)
class StateBatches:
    """Hidden states and labels, computed as they are read; laplace-torch asks for the size of `dataset`."""

    dataset: Sized
    batches: Callable[[], Generator[tuple[Tensor, Tensor], None, None]]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with closing(self.batches()) as found:
            yield from found


def fitted_posterior(estimator: str, head: Head, batches: StateBatches, samples: int, seed: int) -> HeadPosterior:
    """Return the posterior of the head's weight, in float64, and its samples in the head's dtype.

    Args:
        estimator: `laplace` or `laplace_diag`.
        head: whose logits are `hidden @ weight.T`.
        batches: states and labels in batches, with `dataset` of the length of all of them.
        samples: how many weights to draw.
        seed: of the samples.
    """
    from laplace import Laplace

    from tokenuq_ml.scoring.softmax_curvature import SoftmaxCurvature

    device = head.weight_VD.device
    layer = nn.Linear(head.features, head.vocabulary, bias=False, device=device, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(head.weight_VD)
    structure = "kron" if estimator == LAPLACE else "diag"
    # The best precision is gamma / |W|^2, with at most V D effective parameters gamma (MacKay 1992).
    largest = layer.weight.numel() / float(layer.weight.square().sum())
    posterior = Laplace(
        layer,
        "classification",
        subset_of_weights="all",
        hessian_structure=structure,
        backend=SoftmaxCurvature,
        prior_precision=largest,
    )
    posterior.fit(batches)
    with warnings.catch_warnings():
        # About predictions by laplace-torch, which are not asked for.
        warnings.filterwarnings("ignore", message=".*link_approx")
        posterior.optimize_prior_precision(method="marglik", n_steps=PRIOR_STEPS, lr=0.05)
    with torch.no_grad():
        _check_is_maximum(estimator, posterior)
        drawn = posterior.sample(samples, generator=torch.Generator(device).manual_seed(seed))
        return HeadPosterior(
            head,
            drawn.unflatten(1, (head.vocabulary, head.features)).to(head.weight_VD.dtype),
            float(posterior.prior_precision),
            float(posterior.log_marginal_likelihood()),
            len(batches.dataset),
        )


def _check_is_maximum(estimator: str, posterior: Any) -> None:
    """Check that the prior precision maximises the marginal likelihood.

    Raises:
        InputError: a precision that is a tenth larger or smaller has a higher one.
    """
    best = posterior.prior_precision.clone()
    found = [float(posterior.log_marginal_likelihood(prior_precision=best * factor)) for factor in (1 / 1.1, 1.1, 1)]
    if not found[2] >= max(found[:2]):
        raise InputError(
            f"{estimator!r}: the marginal likelihood has no maximum near the prior precision {float(best):.3g}, after "
            f"{PRIOR_STEPS} steps; remove {estimator!r} from uncertainty.estimators"
        )


def _states(
    model: TrainedModel, examples: list[TokenizedExample], numerics: Numerics, progress: Progress
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield hidden states in float64 and labels of each batch."""

    @torch.no_grad()
    def states_of(batch: Batch) -> tuple[Tensor, Tensor, int]:
        tokens = sum(len(example.input_ids) for example in batch.examples)
        return batch.predicting(hidden_states(model, batch.model_inputs, numerics)).double(), batch.label_N, tokens

    model.eval()
    plan = BatchPlan.of(model, numerics)
    with located(model, numerics), fast_inference(causal_lm(model)):
        for hidden_ND, label_N, tokens in map_batches(states_of, plan.batches(examples), model, numerics):
            progress(tokens)
            yield hidden_ND, label_N


def laplace_uncertainty(
    model: TrainedModel,
    posterior: HeadPosterior,
    examples: list[TokenizedExample],
    numerics: Numerics,
    progress: Progress = lambda tokens: None,
) -> pl.DataFrame:
    """Return rows of `token_uncertainty`, sorted, over the samples of the posterior; one pass of the model.

    Args:
        model: with the teacher's adapter active.
        posterior: of its output layer.
        examples: in any order.
        numerics: device and threads; its dtype is not used.
        progress: called with the number of tokens of each batch that is done.
    """
    spec, frames = UncertaintySpec(samples=len(posterior.weight_KVD)), []

    @torch.no_grad()
    def scores_of(batch: Batch) -> tuple[Batch, MonteCarloScores]:
        hidden_ND = batch.predicting(hidden_states(model, batch.model_inputs, numerics))
        return batch, sampled_head_scores(hidden_ND, posterior.head, posterior.weight_KVD, batch.label_N)

    model.eval()
    with float32_passes(model) as dtype:
        numerics = replace(numerics, dtype=dtype)
        plan = BatchPlan.of(model, numerics)
        with located(model, numerics), fast_inference(causal_lm(model)):
            for batch, scores in map_batches(scores_of, plan.batches(examples), model, numerics):
                progress(sum(len(example.input_ids) for example in batch.examples))
                frames.append(uncertainty_rows(batch, scores, spec))
    return pl.concat(frames).sort(*TOKEN_KEY)
