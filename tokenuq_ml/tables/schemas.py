"""The tables: their columns and meanings, their sort keys, and their partitions.

Files are at `<home>/<table>/study=<study>/[ablation=<ablation>/]part-*.parquet`, which polars, DuckDB and pyarrow read
as a hive-partitioned dataset. All losses are in nats.
"""

from pathlib import Path

import pyarrow as pa

from tokenuq_ml.tables.data_schemas import DATA_TABLES
from tokenuq_ml.tables.table import TOKEN_COLUMNS, TOKEN_KEY, Table

_CATEGORY = pa.dictionary(pa.int32(), pa.string())

TABLES = {
    **DATA_TABLES,
    "token_losses": Table(
        "One row per response token, all splits: loss, entropy and rank under teacher and base model, without dropout.",
        {
            "example_id": TOKEN_COLUMNS["example_id"],
            "dataset": (_CATEGORY, "name of the dataset"),
            "split": (_CATEGORY, "train, validation, test or ood"),
            "position": TOKEN_COLUMNS["position"],
            "token_id": (pa.int32(), "id of the predicted token"),
            "token": (_CATEGORY, "text of that token"),
            "category": (_CATEGORY, "special, whitespace, punctuation, number, word, subword or code"),
            "loss": (pa.float32(), "cross-entropy under the teacher, nats"),
            "entropy": (pa.float32(), "entropy of the teacher's distribution, nats"),
            "rank": (pa.int32(), "number of tokens that the teacher finds likelier; 0 is its first choice"),
            "base_loss": (pa.float32(), "cross-entropy under the base model, nats"),
            "base_entropy": (pa.float32(), "entropy of the base model's distribution, nats"),
        },
        keys=TOKEN_KEY,
    ),
    "token_alternatives": Table(
        "The tokens that the teacher finds likeliest at the position of each held-out response token.",
        {
            **TOKEN_COLUMNS,
            "choice": (pa.int8(), "rank by probability; 0 is the teacher's first choice"),
            "token_id": (pa.int32(), "id of the alternative; may be the token itself"),
            "token": (_CATEGORY, "text of that token"),
            "probability": (pa.float32(), "its probability under the teacher"),
        },
        keys=(*TOKEN_KEY, "choice"),
    ),
    "token_uncertainty": Table(
        "One row per response token, as in token_losses: Monte-Carlo dropout over the teacher's adapter.",
        {
            **TOKEN_COLUMNS,
            "predictive_entropy": (pa.float32(), "H[mean_k p_k], nats"),
            "expected_entropy": (pa.float32(), "mean_k H[p_k], the aleatoric part, nats"),
            "bald": (pa.float32(), "mean_k KL(p_k || mean p), the epistemic part, nats, >= 0"),
            "bald_std_error": (pa.float32(), "standard error of bald over draws of the K masks (jackknife), nats"),
            "mc_loss": (pa.float32(), "-log mean_k p_k(token), nats"),
            "n_samples": (pa.int16(), "K"),
        },
        keys=TOKEN_KEY,
    ),
    "bald_reference": Table(
        "BALD of a small sample of tokens, also computed in float64 with the same masks: measures rounding.",
        {
            **TOKEN_COLUMNS,
            "bald": (pa.float32(), "as in token_uncertainty, nats"),
            "bald_float64": (pa.float64(), "in float64 with the same masks, nats"),
        },
        keys=TOKEN_KEY,
    ),
    "training_log": Table(
        "One row per optimiser step of the teacher (ablation=teacher) or a student.",
        {
            "step": (pa.int32(), "optimiser step, from 1"),
            "epoch": (pa.float32(), "epochs completed after the step"),
            "loss": (pa.float32(), "the objective, nats per response token of the optimiser batch"),
            "mle_loss": (pa.float32(), "mean cross-entropy of the tokens trained by MLE, nats"),
            "distill_loss": (
                pa.float32(),
                "mean divergence of the distilled tokens, nats; null if no token is distilled",
            ),
            "selected_share": (pa.float32(), "share of response tokens that are selected"),
            "learning_rate": (pa.float32(), "learning rate of the step"),
            "grad_norm": (pa.float32(), "gradient norm before clipping"),
            "tokens": (pa.int32(), "number of response tokens of the optimiser batch"),
            "lora_rank": (pa.int32(), "the adapter's active rank"),
        },
        keys=("step",),
        partitions=("study", "ablation"),
    ),
    "selections": Table(
        "One row per response token and step of a student's training: whether it was selected, and its objective.",
        {
            "step": (pa.int32(), "optimiser step, from 1"),
            "epoch": (pa.float32(), "epochs completed after the step"),
            **TOKEN_COLUMNS,
            "loss": (pa.float32(), "the student's cross-entropy at that step, nats"),
            "selected": (pa.bool_(), "whether the token was selected"),
            "objective": (pa.string(), "mle, dft, eaft, distill, none, or module:function"),
        },
        keys=("step", *TOKEN_KEY),
        partitions=("study", "ablation"),
    ),
    "curriculum": Table(
        "One row per step and token category: how many of its tokens were selected.",
        {
            "step": (pa.int32(), "optimiser step, from 1"),
            "epoch": (pa.float32(), "epochs completed after the step"),
            "category": (pa.string(), "token category"),
            "n_tokens": (pa.int32(), "number of response tokens of the category in the step"),
            "n_selected": (pa.int32(), "number of those that were selected"),
            "mean_loss": (pa.float32(), "the student's mean loss on the category at that step, nats"),
        },
        keys=("step", "category"),
        partitions=("study", "ablation"),
    ),
    "curriculum_uncertainty": Table(
        "Loss and Monte-Carlo uncertainty of a fixed validation sample during training, by token category.",
        {
            "fraction": (pa.float32(), "share of training completed"),
            "step": (pa.int32(), "optimiser step"),
            "category": (pa.string(), "token category, or `all`"),
            "n_tokens": (pa.int32(), "number of response tokens"),
            "loss": (pa.float32(), "mean cross-entropy without dropout, nats"),
            "predictive_entropy": (pa.float32(), "mean H[mean_k p_k], nats"),
            "expected_entropy": (pa.float32(), "mean of mean_k H[p_k], nats"),
            "bald": (pa.float32(), "mean BALD, nats"),
        },
        keys=("step", "category"),
        partitions=("study", "ablation"),
    ),
    "evaluations": Table(
        "One row per metric of a model; base model and teacher are the ablations base and teacher.",
        {
            "family": (pa.string(), "the ablation without its seed"),
            "seed": (pa.int32(), "the ablation's seed; null for base"),
            "dataset": (pa.string(), "name of the dataset"),
            "split": (pa.string(), "test (in distribution) or ood"),
            "metric": (pa.string(), "name of the metric"),
            "value": (pa.float64(), "value of the metric"),
            "ci_low": (pa.float64(), "lower end of the bootstrap interval over examples"),
            "ci_high": (pa.float64(), "upper end of that interval"),
            "n": (pa.int32(), "number of examples"),
            "higher_is_better": (pa.bool_(), "direction of the metric; null if neither is better"),
        },
        keys=("dataset", "split", "metric"),
        partitions=("study", "ablation"),
    ),
    "evaluation_examples": Table(
        "One row per example and metric of evaluations, whose value is sum(numerator) / sum(denominator).",
        {
            "example_id": (pa.string(), "the example"),
            "dataset": (pa.string(), "name of the dataset"),
            "split": (pa.string(), "test (in distribution) or ood"),
            "metric": (pa.string(), "name of the metric"),
            "numerator": (pa.float64(), "the example's sum: nats, correct tokens, followed instructions, or a verdict"),
            "denominator": (pa.float64(), "number of tokens, instructions or answers in that sum"),
        },
        keys=("dataset", "split", "metric", "example_id"),
        partitions=("study", "ablation"),
    ),
    "evaluation_tokens": Table(
        "One row per response token of test and ood: a model's loss and entropy, without dropout.",
        {
            **TOKEN_COLUMNS,
            "loss": (pa.float32(), "cross-entropy under the model, nats"),
            "entropy": (pa.float32(), "entropy of the model's distribution, nats"),
        },
        keys=TOKEN_KEY,
        partitions=("study", "ablation"),
    ),
    "generations": Table(
        "One row per instruction-following prompt: the model's answer, and the results of the checkers.",
        {
            "example_id": (pa.string(), "the prompt"),
            "prompt": (pa.string(), "the instruction"),
            "response": (pa.string(), "the model's text"),
            "n_tokens": (pa.int32(), "number of generated tokens"),
            "prompt_level_strict": (pa.bool_(), "whether the response as written follows every instruction"),
            "prompt_level_loose": (pa.bool_(), "whether a relaxed form of the response follows every instruction"),
            "inst_level_strict": (pa.list_(pa.bool_()), "the same per instruction, response as written"),
            "inst_level_loose": (pa.list_(pa.bool_()), "the same per instruction, relaxed forms"),
        },
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "gsm8k_answers": Table(
        "One row per GSM8K question: the model's answer, and what lm-eval's filters extract from it.",
        {
            "example_id": (pa.string(), "the question"),
            "prompt": (pa.string(), "the question, without few-shot examples and task template"),
            "target": (pa.string(), "the dataset's worked answer"),
            "response": (pa.string(), "the model's text"),
            "n_tokens": (pa.int32(), "number of generated tokens"),
            "strict_answer": (pa.string(), "the number after ####, or [invalid]"),
            "strict_match": (pa.bool_(), "whether it equals the target's"),
            "flexible_answer": (pa.string(), "the last number of the text, or [invalid]"),
            "flexible_match": (pa.bool_(), "whether it equals the target's"),
        },
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "alpaca_eval_verdicts": Table(
        "One row per AlpacaEval instruction: the model's output, the reference's, and the judge's verdicts.",
        {
            "example_id": (pa.string(), "the instruction"),
            "prompt": (pa.string(), "text of the instruction"),
            "response": (pa.string(), "the model's output"),
            "reference": (pa.string(), "the output that the model's is compared with"),
            "n_tokens": (pa.int32(), "number of generated tokens"),
            "preferred_first": (pa.float64(), "the judge's preference for the model's output, shown first; 0 to 1"),
            "preferred_second": (pa.float64(), "the same, shown second"),
            "preferred": (pa.float64(), "mean of both; null if an answer of the judge has no verdict"),
            "flipped": (pa.bool_(), "whether the verdict depends on the order"),
        },
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "uncertainty_analysis": Table(
        "One row per correlation between loss, entropy and BALD.",
        {
            "split": (pa.string(), "a split, or `all`"),
            "category": (pa.string(), "a token category, or `all`"),
            "x": (pa.string(), "first column"),
            "y": (pa.string(), "second column"),
            "method": (pa.string(), "pearson, spearman, or partial_spearman (given entropy)"),
            "value": (pa.float64(), "correlation; null if it is undefined"),
            "ci_low": (pa.float64(), "lower end of the bootstrap interval over examples"),
            "ci_high": (pa.float64(), "upper end of that interval"),
            "n": (pa.int32(), "number of tokens"),
        },
        keys=("split", "category", "x", "y", "method"),
    ),
}

JOINED = "tokens"
JOINED_FROM, JOINED_ON = ("token_losses", "token_uncertainty"), ("study", *TOKEN_KEY)
"""The view that readers offer as the one-to-one join of two tables; it has no files of its own."""


def table_dir(home: str | Path, table: str, **partitions: str) -> Path:
    """Return the folder of a partition, as in `table_dir(home, "token_losses", study="quickstart")`."""
    return Path(home, table, *(f"{name}={partitions[name]}" for name in TABLES[table].partitions if name in partitions))
