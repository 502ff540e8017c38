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
