"""Bytes on disk per row of the tables that grow with the data. Does not import torch."""

TABLE_BYTES = {
    "examples": 1.8,
    "tokenized_dataset": 1.7,
    "token_losses": 27.0,
    "token_uncertainty": 26.2,
    "true_divergence": 130.0,
    "teacher_change": 5.4,
    "uncertainty_estimates": 5.4,
    "selections": 7.7,
    "evaluation_tokens": 14.0,
    "answers": 4.0,
}
"""Bytes on disk per row, which is a response token, or for `examples`, `tokenized_dataset` and `answers` a token of
text. Measured in ablation_matrix; those of `examples`, `evaluation_tokens` and `answers` are estimates, and that
of `uncertainty_estimates` is for each estimator."""
