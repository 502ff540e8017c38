"""The tables of estimators of BALD: what they say of each token, and what they cost."""

from tokenuq_ml.tables.table import TOKEN_COLUMNS, TOKEN_KEY, Table

_DROPOUT = "BALD from Monte-Carlo dropout at a rate of {}%, nats"

BALD_COLUMNS = {
    **{f"bald_mc_dropout_{percent}": ("float32", _DROPOUT.format(percent)) for percent in (5, 10, 20, 50)},
    "bald_adapter_ensemble": ("float32", "BALD over teachers that differ in seed and order of the data, nats"),
    "bald_laplace": ("float32", "BALD from a Kronecker-factored Laplace approximation of the output layer, nats"),
    "bald_laplace_diag": ("float32", "BALD from a diagonal Laplace approximation of the output layer, nats"),
}
"""Column of each estimator; null where the study does not name it."""

ESTIMATE_TABLES = {
    "uncertainty_estimates": Table(
        "One row per response token, as in token_uncertainty: BALD by the further estimators that the study names.",
        {**TOKEN_COLUMNS, **BALD_COLUMNS},
        keys=TOKEN_KEY,
    ),
    "estimator_costs": Table(
        "What each of these estimators cost. Times are of the machine that measured, and part of no version.",
        {
            "estimator": ("string", "name of the estimator"),
            "samples": ("int32", "samples of each token's distribution"),
            "trainings": ("int32", "teachers that were trained in addition to the study's own"),
            "forward_passes": ("float64", "forward passes over all tokens, those of a part of them as that part"),
            "head_products": ("float64", "products with the output layer, per response token"),
            "seconds": ("float64", "time to measure, without trainings"),
            "bytes": ("int64", "memory for adapters of members, or for the posterior and its samples"),
            "prior_precision": ("float64", "of the Laplace approximation, by its marginal likelihood; null: none"),
        },
        keys=("estimator",),
    ),
}
