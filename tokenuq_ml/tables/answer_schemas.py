"""Tables of evaluations that generate answers or ask a judge, one row per prompt; a part of `schemas.py`."""

from tokenuq_ml.tables.table import Table

CHECKED_COLUMNS = {
    "example_id": ("string", "the prompt"),
    "prompt": ("string", "the instruction"),
    "response": ("string", "the model's text"),
    "n_tokens": ("int32", "number of generated tokens"),
    "prompt_level_strict": ("bool", "whether the response as written follows every instruction"),
    "prompt_level_loose": ("bool", "whether a relaxed form of the response follows every instruction"),
    "inst_level_strict": ("list<bool>", "the same per instruction, response as written"),
    "inst_level_loose": ("list<bool>", "the same per instruction, relaxed forms"),
}
"""Of answers to instructions that checkers judge."""

VERDICT_COLUMNS = {
    "preferred_first": ("float64", "the judge's preference for the model's output, shown first; 0 to 1"),
    "preferred_second": ("float64", "the same, shown second"),
    "preferred": ("float64", "mean of both; null if an answer of the judge has no verdict"),
    "flipped": ("bool", "whether the verdict depends on the order"),
}
"""Of a judge that compares the model's output with another."""

ANSWER_TABLES = {
    "generations": Table(
        "One row per instruction-following prompt: the model's answer, and the results of the checkers.",
        CHECKED_COLUMNS,
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "ifbench_answers": Table(
        "One row per prompt of IFBench: the model's answer, and the results of its checkers.",
        CHECKED_COLUMNS,
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "gsm8k_answers": Table(
        "One row per GSM8K question: the model's answer, and what lm-eval's filters extract from it.",
        {
            "example_id": ("string", "the question"),
            "prompt": ("string", "the question, without few-shot examples and task template"),
            "target": ("string", "the dataset's worked answer"),
            "response": ("string", "the model's text"),
            "n_tokens": ("int32", "number of generated tokens"),
            "strict_answer": ("string", "the number after ####, or [invalid]"),
            "strict_match": ("bool", "whether it equals the target's"),
            "flexible_answer": ("string", "the last number of the text, or [invalid]"),
            "flexible_match": ("bool", "whether it equals the target's"),
        },
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "alpaca_eval_verdicts": Table(
        "One row per AlpacaEval instruction: the model's output, the reference's, and the judge's verdicts.",
        {
            "example_id": ("string", "the instruction"),
            "prompt": ("string", "text of the instruction"),
            "response": ("string", "the model's output"),
            "reference": ("string", "the output that the model's is compared with"),
            "n_tokens": ("int32", "number of generated tokens"),
            **VERDICT_COLUMNS,
        },
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "pairwise_answers": Table(
        "One row per prompt: the output of a model with which those of other models are compared.",
        {
            "example_id": ("string", "the prompt"),
            "prompt": ("string", "text of the prompt"),
            "response": ("string", "the model's output"),
            "n_tokens": ("int32", "number of generated tokens"),
        },
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "pairwise_verdicts": Table(
        "One row per prompt: the model's output, that of another model of the study, and the judge's verdicts.",
        {
            "example_id": ("string", "the prompt"),
            "prompt": ("string", "text of the prompt"),
            "response": ("string", "the model's output"),
            "reference": ("string", "the other model's output"),
            "versus": ("string", "the other model: an ablation, base or teacher"),
            "n_tokens": ("int32", "number of tokens that the model generated"),
            **VERDICT_COLUMNS,
        },
        keys=("example_id",),
        partitions=("study", "ablation"),
    ),
    "lm_eval_samples": Table(
        "One row per sample and filter of lm-eval's tasks: prompt, answer, and what the filter makes of it.",
        {
            "example_id": ("string", "task, number and hash of the sample"),
            "task": ("category", "name of the task"),
            "filter": ("string", "name of lm-eval's filter; none if the task has no named one"),
            "prompt": ("string", "the sample's first request, with its few-shot examples"),
            "target": ("string", "the right answer, or the number of the right choice"),
            "response": ("string", "the model's text, or JSON of log-likelihood and greediness of each choice"),
            "filtered": ("string", "what the filter makes of the response, of which the metrics are"),
        },
        keys=("example_id", "filter"),
        partitions=("study", "ablation"),
    ),
}
