"""The estimators of BALD that a study may measure in addition to Monte-Carlo dropout at its own rate.

Every name is a column `bald_<name>` of the table `uncertainty_estimates`, and a score that ablations may select by.
"""

from typing import NamedTuple


class Estimator(NamedTuple):
    """Where the samples of a token's distribution come from."""

    meaning: str
    dropout: float | None = None
    """The rate of Monte-Carlo dropout; None for the others."""


OWN_RATE = "mc_dropout"
"""Monte-Carlo dropout at the study's own rate: the column `bald` of `token_uncertainty`, which every study has."""
ENSEMBLE, LAPLACE, DIAGONAL_LAPLACE = "adapter_ensemble", "laplace", "laplace_diag"

ESTIMATORS = {
    **{
        f"mc_dropout_{percent}": Estimator(f"Monte-Carlo dropout of {percent}% of the adapter's inputs", percent / 100)
        for percent in (5, 10, 20, 50)
    },
    ENSEMBLE: Estimator("teachers that differ in seed and order of the data"),
    LAPLACE: Estimator("Laplace approximation of the output layer, Kronecker-factored"),
    DIAGONAL_LAPLACE: Estimator("Laplace approximation of the output layer, diagonal"),
}
LAPLACE_ESTIMATORS = (LAPLACE, DIAGONAL_LAPLACE)


def column_of(estimator: str) -> str:
    """Return the column of an estimator in `uncertainty_estimates`."""
    return f"bald_{estimator}"


LAPLACE_LIMIT = 2 * 2**30
"""Most memory that a posterior of the output layer and its samples may take."""


def posterior_bytes(estimator: str, vocabulary: int, features: int, samples: int) -> int:
    """Return the memory of a posterior in float64, while its samples are drawn; the largest tensors only.

    Args:
        estimator: of `LAPLACE_ESTIMATORS`.
        vocabulary: V, the outputs of the layer.
        features: D, its inputs.
        samples: K weights that are drawn.
    """
    weight = vocabulary * features
    # Of the first factor: itself, what a batch adds, its eigenvectors, and the work space of their computation.
    factors = 4 * (vocabulary**2 + features**2) if estimator == LAPLACE else 2 * weight
    return 8 * (factors + 4 * weight + 3 * samples * weight)


def too_large(estimator: str, vocabulary: int, features: int, samples: int) -> str | None:
    """Return why a posterior is not computed; None if it fits. The arguments are those of `posterior_bytes`."""
    needed = posterior_bytes(estimator, vocabulary, features, samples)
    if needed <= LAPLACE_LIMIT:
        return None
    return (
        f"{estimator!r} would take {needed / 1e9:.1f} GB for an output layer of {vocabulary:,} x {features:,}, more "
        f"than the limit of {LAPLACE_LIMIT / 1e9:.1f} GB; remove it from uncertainty.estimators, or use a model with a "
        "smaller vocabulary"
    )
