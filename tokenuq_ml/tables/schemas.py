"""The tables: their columns and meanings, their sort keys, and their partitions.

Files are at `<home>/<table>/study=<study>/[ablation=<ablation>/]part-*.parquet`, which polars, DuckDB and pyarrow read
as a hive-partitioned dataset. All losses are in nats.
"""

from pathlib import Path

from tokenuq_ml.tables.answer_schemas import ANSWER_TABLES
from tokenuq_ml.tables.data_schemas import DATA_TABLES
from tokenuq_ml.tables.estimate_schemas import BALD_COLUMNS, ESTIMATE_TABLES
from tokenuq_ml.tables.table import TOKEN_COLUMNS, TOKEN_KEY, Table
from tokenuq_ml.tables.truth_schemas import DIVERGENCE_COLUMNS, TRUTH_TABLES

TABLES = {
    **DATA_TABLES,
    "token_losses": Table(
        "One row per response token, all splits: loss, entropy and rank under teacher and base model, without dropout.",
        {
            "example_id": TOKEN_COLUMNS["example_id"],
            "dataset": ("category", "name of the dataset"),
            "split": ("category", "train, validation, test or ood"),
            "position": TOKEN_COLUMNS["position"],
            "token_id": ("int32", "id of the predicted token"),
            "token": ("category", "text of that token"),
            "category": ("category", "special, whitespace, punctuation, number, word, subword or code"),
            "loss": ("float32", "cross-entropy under the teacher, nats"),
            "entropy": ("float32", "entropy of the teacher's distribution, nats"),
            "rank": ("int32", "number of tokens that the teacher finds likelier; 0 is its first choice"),
            "base_loss": ("float32", "cross-entropy under the base model, nats"),
            "base_entropy": ("float32", "entropy of the base model's distribution, nats"),
        },
        keys=TOKEN_KEY,
    ),
    "token_alternatives": Table(
        "The tokens that the teacher finds likeliest at the position of each held-out response token.",
        {
            **TOKEN_COLUMNS,
            "choice": ("int8", "rank by probability; 0 is the teacher's first choice"),
            "token_id": ("int32", "id of the alternative; may be the token itself"),
            "token": ("category", "text of that token"),
            "probability": ("float32", "its probability under the teacher"),
        },
        keys=(*TOKEN_KEY, "choice"),
    ),
    "token_uncertainty": Table(
        "One row per response token, as in token_losses: Monte-Carlo dropout over the teacher's adapter.",
        {
            **TOKEN_COLUMNS,
            "predictive_entropy": ("float32", "H[mean_k p_k], nats"),
            "expected_entropy": ("float32", "mean_k H[p_k], the aleatoric part, nats"),
            "bald": ("float32", "mean_k KL(p_k || mean p), the epistemic part, nats, >= 0"),
            "bald_std_error": ("float32", "standard error of bald over draws of the K masks (jackknife), nats"),
            "mc_loss": ("float32", "-log mean_k p_k(token), nats"),
            "n_samples": ("int16", "K"),
        },
        keys=TOKEN_KEY,
    ),
    "teacher_change": Table(
        "One row per response token, as in token_losses: how far training has moved the teacher from the base model.",
        {**TOKEN_COLUMNS, "change": ("float32", "KL(teacher || base model), without dropout, nats")},
        keys=TOKEN_KEY,
    ),
    **ESTIMATE_TABLES,
    "bald_reference": Table(
        "BALD of a small sample of tokens, also computed in float64 with the same masks: measures rounding.",
        {
            **TOKEN_COLUMNS,
            "bald": ("float32", "as in token_uncertainty, nats"),
            "bald_float64": ("float64", "in float64 with the same masks, nats"),
        },
        keys=TOKEN_KEY,
    ),
    "training_log": Table(
        "One row per optimiser step of the teacher (ablation=teacher) or a student.",
        {
            "step": ("int32", "optimiser step, from 1"),
            "epoch": ("float32", "epochs completed after the step"),
            "loss": ("float32", "the objective, nats per response token of the optimiser batch"),
            "mle_loss": ("float32", "mean cross-entropy of the tokens trained by MLE, nats"),
            "distill_loss": (
                "float32",
                "mean divergence of the distilled tokens, nats; null if no token is distilled",
            ),
            "selected_share": ("float32", "share of response tokens that are selected"),
            "learning_rate": ("float32", "learning rate of the step"),
            "grad_norm": ("float32", "gradient norm before clipping"),
            "tokens": ("int32", "number of response tokens of the optimiser batch"),
            "lora_rank": ("int32", "the adapter's active rank"),
        },
        keys=("step",),
        partitions=("study", "ablation"),
    ),
    "selections": Table(
        "One row per response token and step of a student's training: whether it was selected, and its objective.",
        {
            "step": ("int32", "optimiser step, from 1"),
            "epoch": ("float32", "epochs completed after the step"),
            **TOKEN_COLUMNS,
            "loss": ("float32", "the student's cross-entropy at that step, nats"),
            "selected": ("bool", "whether the token was selected"),
            "objective": ("string", "name of the objective; of a sum, with `+distill`"),
        },
        keys=("step", *TOKEN_KEY),
        partitions=("study", "ablation"),
    ),
    "curriculum": Table(
        "One row per step and token category: how many of its tokens were selected.",
        {
            "step": ("int32", "optimiser step, from 1"),
            "epoch": ("float32", "epochs completed after the step"),
            "category": ("string", "token category"),
            "n_tokens": ("int32", "number of response tokens of the category in the step"),
            "n_selected": ("int32", "number of those that were selected"),
            "mean_loss": ("float32", "the student's mean loss on the category at that step, nats"),
        },
        keys=("step", "category"),
        partitions=("study", "ablation"),
    ),
    "curriculum_uncertainty": Table(
        "Loss and Monte-Carlo uncertainty of a fixed validation sample during training, by token category.",
        {
            "fraction": ("float32", "share of training completed"),
            "step": ("int32", "optimiser step"),
            "category": ("string", "token category, or `all`"),
            "n_tokens": ("int32", "number of response tokens"),
            "loss": ("float32", "mean cross-entropy without dropout, nats"),
            "predictive_entropy": ("float32", "mean H[mean_k p_k], nats"),
            "expected_entropy": ("float32", "mean of mean_k H[p_k], nats"),
            "bald": ("float32", "mean BALD, nats"),
        },
        keys=("step", "category"),
        partitions=("study", "ablation"),
    ),
    "evaluations": Table(
        "One row per metric of a model; base model and teacher are the ablations base and teacher.",
        {
            "family": ("string", "the ablation without its seed and what its `train` adds to the name"),
            "seed": ("int32", "the ablation's seed; null for base"),
            "dataset": ("string", "name of the dataset"),
            "split": ("string", "test (in distribution) or ood"),
            "metric": ("string", "name of the metric"),
            "value": ("float64", "value of the metric"),
            "ci_low": ("float64", "lower end of the bootstrap interval over examples"),
            "ci_high": ("float64", "upper end of that interval"),
            "n": ("int32", "number of examples"),
            "higher_is_better": ("bool", "direction of the metric; null if neither is better"),
        },
        keys=("dataset", "split", "metric"),
        partitions=("study", "ablation"),
    ),
    "validation_losses": Table(
        "One row per validation example: a model's loss, by which settings of a training are compared.",
        {
            "example_id": ("string", "the example"),
            "loss": ("float64", "sum of the cross-entropies of its response tokens, nats"),
            "tokens": ("int32", "number of its response tokens"),
        },
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "teacher_candidates": Table(
        "One row per setting at which a teacher was trained: the one with the lowest validation loss is the study's.",
        {
            "candidate": ("string", "name of the candidate, which is its `ablation` in other tables"),
            "learning_rate": ("float64", "learning rate; null: the study's"),
            "epochs": ("int32", "epochs; null: the study's"),
            "weight_decay": ("float64", "weight decay; null: the study's"),
            "loss": ("float64", "mean cross-entropy of the validation split's response tokens, nats"),
            "ci_low": ("float64", "lower end of the bootstrap interval over examples"),
            "ci_high": ("float64", "upper end of that interval"),
            "n": ("int32", "number of examples"),
            "chosen": ("bool", "whether it is the study's teacher"),
        },
        keys=("candidate",),
    ),
    "evaluation_examples": Table(
        "One row per example and metric of evaluations, whose value is sum(numerator) / sum(denominator).",
        {
            "example_id": ("string", "the example"),
            "dataset": ("string", "name of the dataset"),
            "split": ("string", "test (in distribution) or ood"),
            "metric": ("string", "name of the metric"),
            "numerator": ("float64", "the example's sum: nats, correct tokens, followed instructions, or a verdict"),
            "denominator": ("float64", "number of tokens, instructions or answers in that sum"),
        },
        keys=("dataset", "split", "metric", "example_id"),
        partitions=("study", "ablation"),
    ),
    "evaluation_tokens": Table(
        "One row per response token of test and ood: a model's loss and entropy, without dropout.",
        {
            **TOKEN_COLUMNS,
            "loss": ("float32", "cross-entropy under the model, nats"),
            "entropy": ("float32", "entropy of the model's distribution, nats"),
            **DIVERGENCE_COLUMNS,
        },
        keys=TOKEN_KEY,
        partitions=("study", "ablation"),
        optional=tuple(DIVERGENCE_COLUMNS),
    ),
    **ANSWER_TABLES,
    "uncertainty_analysis": Table(
        "One row per correlation between loss, entropy and BALD.",
        {
            "split": ("string", "a split, or `all`"),
            "category": ("string", "a token category, or `all`"),
            "x": ("string", "first column"),
            "y": ("string", "second column"),
            "method": ("string", "pearson, spearman, or partial_spearman (given entropy)"),
            "value": ("float64", "correlation; null if it is undefined"),
            "ci_low": ("float64", "lower end of the bootstrap interval over examples"),
            "ci_high": ("float64", "upper end of that interval"),
            "n": ("int32", "number of tokens"),
        },
        keys=("split", "category", "x", "y", "method"),
    ),
    **TRUTH_TABLES,
}

JOINED = "tokens"
JOINED_FROM, JOINED_ON = ("token_losses", "token_uncertainty"), ("study", *TOKEN_KEY)
"""The view that readers offer as the one-to-one join of two tables; it has no files of its own."""
JOINED_LATER: dict[str, tuple[str, ...]] = {
    "token_truth": ("slot", "true_entropy", "true_loss"),
    "uncertainty_estimates": tuple(BALD_COLUMNS),
}
"""Table that only some studies have -> the columns that the view takes from it; null in the other studies."""
JOINED_READS = (*JOINED_FROM, *JOINED_LATER)
"""All tables that the view reads."""


def table_dir(home: str | Path, table: str, **partitions: str) -> Path:
    """Return the folder of a partition, as in `table_dir(home, "token_losses", study="quickstart")`."""
    return Path(home, partition_folder(table, **partitions))


def partition_folder(table: str, **partitions: str) -> str:
    """Return the path of a partition inside a store: `token_losses/study=quickstart`."""
    named = (f"{name}={partitions[name]}" for name in TABLES[table].partitions if name in partitions)
    return "/".join((table, *named))
