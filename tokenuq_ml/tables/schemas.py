"""The tables: their columns, what these mean, how rows are sorted, and where partitions lie.

The layout on disk is part of the schema: `<home>/<table>/study=<study>/
[ablation=<ablation>/]part-*.parquet`, so that polars, DuckDB and pyarrow read it as a
hive-partitioned dataset. All losses are in nats. This file does not know how tables are
written or read, nor who computes what is in them.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

_CATEGORY = pa.dictionary(pa.int32(), pa.string())
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True)
class Table:
    """A table's columns (name -> type, meaning), its sort keys and its partition keys."""

    description: str
    columns: dict[str, tuple[pa.DataType, str]]
    keys: tuple[str, ...]
    partitions: tuple[str, ...] = ("study",)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field(name, dtype, metadata={"description": meaning})
                for name, (dtype, meaning) in self.columns.items()
            ]
        )


TOKEN_KEY = ("example_id", "position")
"""The key of a response token, in every table with one row per token."""

_TOKEN_COLUMNS = {
    "example_id": (pa.string(), "the example; starts with its dataset's name"),
    "position": (pa.int32(), "index of the predicted token in input_ids; predicted from the tokens before it"),
}
_STEP_COLUMNS = {
    "step": (pa.int32(), "optimiser step, from 1"),
    "epoch": (pa.float32(), "epochs completed after the step"),
}

TABLES = {
    "examples": Table(
        "Normalised examples of a dataset.",
        {
            "example_id": (pa.string(), "unique; starts with the dataset's name"),
            "split": (pa.string(), "train, validation, test or ood"),
            "messages": (_MESSAGES, "the conversation, as role and content"),
            "source": (pa.string(), "JSON: where the example comes from, and what its format says beside the text"),
        },
        keys=("example_id",),
        partitions=("dataset",),
    ),
    "rejected_rows": Table(
        "Rows of a dataset's source that are not among its examples, with the reason.",
        {
            "number": (pa.int64(), "order in which they were found, from 0"),
            "file": (pa.string(), "name of the file, or of the hub's dataset"),
            "row": (pa.int64(), "which row of the file, from 1"),
            "line": (pa.int64(), "the line that it begins on, from 1; null where there are no lines"),
            "reason": (pa.string(), "kind of fault, or what it repeats"),
            "detail": (pa.string(), "what exactly"),
        },
        keys=("number",),
        partitions=("dataset",),
    ),
    "tokenized_dataset": Table(
        "Examples in a model's tokens.",
        {
            "example_id": (pa.string(), "unique; starts with the dataset's name"),
            "dataset": (pa.string(), "name of the dataset"),
            "split": (pa.string(), "train, validation, test or ood"),
            "input_ids": (pa.list_(pa.int32()), "token ids, chat template applied"),
            "response_mask": (pa.list_(pa.bool_()), "true where the token is trained and scored"),
        },
        keys=("example_id",),
    ),
    "token_losses": Table(
        "One row a response token: loss, entropy and rank under the teacher and the base model, dropout off.",
        {
            "example_id": _TOKEN_COLUMNS["example_id"],
            "dataset": (_CATEGORY, "name of the dataset"),
            "split": (_CATEGORY, "train, validation, test or ood"),
            "position": _TOKEN_COLUMNS["position"],
            "token_id": (pa.int32(), "id of the predicted token"),
            "token": (_CATEGORY, "its text"),
            "category": (_CATEGORY, "special, whitespace, punctuation, number, word, subword or code"),
            "loss": (pa.float32(), "the teacher's cross-entropy with the token, nats"),
            "entropy": (pa.float32(), "entropy of the teacher's distribution, nats"),
            "rank": (pa.int32(), "tokens that the teacher finds likelier; 0 is its first choice"),
            "base_loss": (pa.float32(), "cross-entropy under the base model without adapter, nats"),
            "base_entropy": (pa.float32(), "entropy of the base model's distribution, nats"),
        },
        keys=TOKEN_KEY,
    ),
    "token_alternatives": Table(
        "The teacher's likeliest tokens in place of each held-out response token.",
        {
            **_TOKEN_COLUMNS,
            "choice": (pa.int8(), "0 is the teacher's first choice"),
            "token_id": (pa.int32(), "id of the alternative, which may be the token itself"),
            "token": (_CATEGORY, "its text"),
            "probability": (pa.float32(), "its probability under the teacher"),
        },
        keys=(*TOKEN_KEY, "choice"),
    ),
    "token_uncertainty": Table(
        "One row a response token: Monte-Carlo dropout over the teacher's adapter. Joins one to one with token_losses.",
        {
            **_TOKEN_COLUMNS,
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
        "BALD of a small sample of tokens, computed again in float64 with the same masks: what rounding adds.",
        {
            **_TOKEN_COLUMNS,
            "bald": (pa.float32(), "as in token_uncertainty, nats"),
            "bald_float64": (pa.float64(), "the same masks in float64, nats"),
        },
        keys=TOKEN_KEY,
    ),
    "training_log": Table(
        "One row an optimiser step of the teacher (ablation=teacher) or a student.",
        {
            **_STEP_COLUMNS,
            "loss": (pa.float32(), "the objective, nats a response token of the optimiser batch"),
            "mle_loss": (pa.float32(), "mean cross-entropy of the tokens trained by MLE, nats"),
            "distill_loss": (pa.float32(), "mean divergence of the distilled tokens, nats; null where there are none"),
            "selected_share": (pa.float32(), "selected response tokens over response tokens"),
            "learning_rate": (pa.float32(), "learning rate of the step"),
            "grad_norm": (pa.float32(), "gradient norm before clipping"),
            "tokens": (pa.int32(), "response tokens of the optimiser batch"),
            "lora_rank": (pa.int32(), "the adapter's active rank"),
        },
        keys=("step",),
        partitions=("study", "ablation"),
    ),
    "selections": Table(
        "One row a response token and step of a student's training: was it selected, and what was done with it.",
        {
            **_STEP_COLUMNS,
            **_TOKEN_COLUMNS,
            "loss": (pa.float32(), "the student's cross-entropy at that step, nats"),
            "selected": (pa.bool_(), "whether the selector took it"),
            "objective": (pa.string(), "mle, dft, eaft, distill, none, or module:function"),
        },
        keys=("step", *TOKEN_KEY),
        partitions=("study", "ablation"),
    ),
    "curriculum": Table(
        "Which token categories were selected as training went on.",
        {
            **_STEP_COLUMNS,
            "category": (pa.string(), "token category"),
            "n_tokens": (pa.int32(), "response tokens of the category in the step"),
            "n_selected": (pa.int32(), "of those, selected"),
            "mean_loss": (pa.float32(), "the student's mean loss on the category at that step, nats"),
        },
        keys=("step", "category"),
        partitions=("study", "ablation"),
    ),
    "curriculum_uncertainty": Table(
        "Loss and Monte-Carlo uncertainty of a fixed validation sample as training went on.",
        {
            "fraction": (pa.float32(), "share of training done"),
            "step": (pa.int32(), "optimiser step"),
            "category": (pa.string(), "token category, or `all`"),
            "n_tokens": (pa.int32(), "response tokens"),
            "loss": (pa.float32(), "mean cross-entropy, dropout off, nats"),
            "predictive_entropy": (pa.float32(), "mean H[mean_k p_k], nats"),
            "expected_entropy": (pa.float32(), "mean of mean_k H[p_k], nats"),
            "bald": (pa.float32(), "mean BALD, nats"),
        },
        keys=("step", "category"),
        partitions=("study", "ablation"),
    ),
    "evaluations": Table(
        "One row a metric of a model; the base model and the teacher are the ablations base and teacher.",
        {
            "family": (pa.string(), "the ablation without its seed"),
            "seed": (pa.int32(), "the ablation's seed; null for base"),
            "dataset": (pa.string(), "name of the dataset"),
            "split": (pa.string(), "test (in distribution) or ood"),
            "metric": (pa.string(), "name of the metric"),
            "value": (pa.float64(), "its value"),
            "ci_low": (pa.float64(), "lower end of the bootstrap interval over examples"),
            "ci_high": (pa.float64(), "upper end"),
            "n": (pa.int32(), "examples"),
            "higher_is_better": (pa.bool_(), "direction of the metric; null where neither is better"),
        },
        keys=("dataset", "split", "metric"),
        partitions=("study", "ablation"),
    ),
    "evaluation_examples": Table(
        "What each example adds to each metric of evaluations: value = sum(numerator) / sum(denominator).",
        {
            "example_id": (pa.string(), "the example"),
            "dataset": (pa.string(), "name of the dataset"),
            "split": (pa.string(), "test (in distribution) or ood"),
            "metric": (pa.string(), "name of the metric"),
            "numerator": (pa.float64(), "the example's sum: nats, right tokens, followed instructions, a verdict"),
            "denominator": (pa.float64(), "tokens, instructions or answers that it is counted over"),
        },
        keys=("dataset", "split", "metric", "example_id"),
        partitions=("study", "ablation"),
    ),
    "evaluation_tokens": Table(
        "One row a response token of test and ood: a model's loss and entropy, dropout off.",
        {
            **_TOKEN_COLUMNS,
            "loss": (pa.float32(), "the model's cross-entropy with the token, nats"),
            "entropy": (pa.float32(), "entropy of the model's distribution, nats"),
        },
        keys=TOKEN_KEY,
        partitions=("study", "ablation"),
    ),
    "generations": Table(
        "What a model wrote for each instruction-following prompt, and what the checkers say of it.",
        {
            "example_id": (pa.string(), "the prompt"),
            "prompt": (pa.string(), "the instruction"),
            "response": (pa.string(), "the model's text"),
            "n_tokens": (pa.int32(), "tokens generated"),
            "prompt_level_strict": (pa.bool_(), "every instruction followed, response as it is"),
            "prompt_level_loose": (pa.bool_(), "every instruction followed by some relaxed form of the response"),
            "inst_level_strict": (pa.list_(pa.bool_()), "one an instruction"),
            "inst_level_loose": (pa.list_(pa.bool_()), "one an instruction"),
        },
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "gsm8k_answers": Table(
        "What a model answered to each GSM8K question, and what lm-eval's filters read off it.",
        {
            "example_id": (pa.string(), "the question"),
            "prompt": (pa.string(), "the question, without few-shot examples and the task's frame"),
            "target": (pa.string(), "the dataset's worked answer"),
            "response": (pa.string(), "the model's text"),
            "n_tokens": (pa.int32(), "tokens generated"),
            "strict_answer": (pa.string(), "the number after ####, or [invalid]"),
            "strict_match": (pa.bool_(), "whether it is the target's"),
            "flexible_answer": (pa.string(), "the last number of the text, or [invalid]"),
            "flexible_match": (pa.bool_(), "whether it is the target's"),
        },
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "alpaca_eval_verdicts": Table(
        "A model's output for each AlpacaEval instruction beside the reference's, and the judge's verdicts.",
        {
            "example_id": (pa.string(), "the instruction"),
            "prompt": (pa.string(), "its text"),
            "response": (pa.string(), "the model's output"),
            "reference": (pa.string(), "the output that it is compared with"),
            "n_tokens": (pa.int32(), "tokens generated"),
            "preferred_first": (pa.float64(), "how far the judge prefers the model's output, read first; 0 to 1"),
            "preferred_second": (pa.float64(), "the same, read second"),
            "preferred": (pa.float64(), "mean of both; null where the judge's answer said nothing"),
            "flipped": (pa.bool_(), "whether the verdict changed with the order"),
        },
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "uncertainty_analysis": Table(
        "Correlations between loss, entropy and BALD.",
        {
            "split": (pa.string(), "a split, or `all`"),
            "category": (pa.string(), "a token category, or `all`"),
            "x": (pa.string(), "column"),
            "y": (pa.string(), "column"),
            "method": (pa.string(), "pearson, spearman, or partial_spearman (given entropy)"),
            "value": (pa.float64(), "correlation; null where it is not defined"),
            "ci_low": (pa.float64(), "lower end of the bootstrap interval over examples"),
            "ci_high": (pa.float64(), "upper end"),
            "n": (pa.int32(), "tokens"),
        },
        keys=("split", "category", "x", "y", "method"),
    ),
}

JOINED = "tokens"
JOINED_FROM, JOINED_ON = ("token_losses", "token_uncertainty"), ("study", *TOKEN_KEY)
"""No table on disk: what readers offer as the one-to-one join of two."""


def table_dir(home: str | Path, table: str, **partitions: str) -> Path:
    """Folder of one partition, e.g. `table_dir(home, "token_losses", study="quickstart")`."""
    names = TABLES[table].partitions
    return Path(home, table, *(f"{name}={partitions[name]}" for name in names if name in partitions))
