"""The tables that compare models with the distributions that generated a synthetic language."""

from tokenuq_ml.tables.table import TOKEN_COLUMNS, TOKEN_KEY, Table

DIVERGENCE_COLUMNS = {
    "true_kl": ("float64", "KL(truth || model), label noise included, nats; null if the truth is not known"),
    "clean_kl": ("float64", "the same from the distribution without label noise, nats"),
}
"""What a table has of each token's divergence from the truth."""

TRUTH_TABLES = {
    "true_divergence": Table(
        "One row per response token of a synthetic language, all splits: divergence of teacher and base model.",
        {
            **TOKEN_COLUMNS,
            "true_kl": ("float64", "KL(truth || teacher), label noise included, nats"),
            "clean_kl": ("float64", "the same from the distribution without label noise, nats"),
            "base_true_kl": ("float64", "KL(truth || base model), label noise included, nats"),
            "base_clean_kl": ("float64", "the same from the distribution without label noise, nats"),
        },
        keys=TOKEN_KEY,
    ),
    "true_divergence_over_training": Table(
        "The same tokens at steps of the teacher's training, with the scores that a selection could read then.",
        {
            "fraction": ("float32", "share of the teacher's training completed; at 0 it is the base model"),
            "step": ("int32", "optimiser step"),
            **TOKEN_COLUMNS,
            "loss": ("float32", "cross-entropy without dropout, nats"),
            "entropy": ("float32", "entropy without dropout, nats"),
            "expected_entropy": ("float32", "mean_k H[p_k] under dropout, nats; null at step 0, where dropout is idle"),
            "bald": ("float32", "BALD under dropout, nats; null at step 0"),
            "true_kl": ("float64", "KL(truth || model), label noise included, nats"),
            "clean_kl": ("float64", "the same from the distribution without label noise, nats"),
        },
        keys=("step", *TOKEN_KEY),
    ),
    "truth_ranking": Table(
        "One row per score and statistic: how well the score ranks tokens by their divergence from the truth.",
        {
            "fraction": ("float32", "share of the teacher's training completed; at 0 it is the base model"),
            "split": ("string", "a split, or `all`"),
            "slot": ("string", "a slot, or `all`"),
            "score": ("string", "what ranks the tokens, e.g. loss or bald; `true_kl` itself is the best possible"),
            "statistic": (
                "string",
                "spearman_true_kl, spearman_true_entropy, auroc_top_quarter or top_quarter_share",
            ),
            "value": ("float64", "value of the statistic; null if it is undefined"),
            "ci_low": ("float64", "lower end of the bootstrap interval over examples"),
            "ci_high": ("float64", "upper end of that interval"),
            "n": ("int32", "number of tokens"),
        },
        keys=("fraction", "split", "slot", "score", "statistic"),
    ),
}
