"""AlpacaEval: a judge compares a model's outputs with a reference's, each pair in both orders.

Li et al. 2023. The win rate is, as there, the mean over instructions of the preference for the model's output.
"""

from collections.abc import Callable

import polars as pl

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.answer_cache import AnswerCache, key_of
from tokenuq_ml.evaluation.judge import Judge, JudgeUnavailable, Pair
from tokenuq_ml.evaluation.metrics import example_rows

PAIRS_AT_ONCE = 32
"""Pairs that are judged and cached together; an interruption loses at most these verdicts."""
WIN_RATE, POSITION_BIAS = "win_rate", "position_bias"

VERDICT_SCHEMA = {
    "example_id": pl.String,
    "prompt": pl.String,
    "response": pl.String,
    "reference": pl.String,
    "preferred_first": pl.Float64,
    "preferred_second": pl.Float64,
    "preferred": pl.Float64,
    "flipped": pl.Boolean,
}
"""The columns of `alpaca_eval_verdicts` without `n_tokens`, which the caller adds."""


def references(examples: pl.DataFrame) -> pl.DataFrame:
    """Return `example_id`, `prompt` and `reference` (the output to compare with) of rows of the `examples` table.

    Raises:
        InputError: there is no row, or a row is not one instruction with one output.
    """
    rows = []
    for row in examples.iter_rows(named=True):
        turns = [message for message in row["messages"] if message["role"] != "system"]
        if [message["role"] for message in turns] != ["user", "assistant"]:
            raise InputError(
                f"AlpacaEval example {row['example_id']}: must be one instruction with the reference's output; "
                "load the dataset with format: alpaca_eval"
            )
        rows.append((row["example_id"], turns[0]["content"], turns[1]["content"]))
    if not rows:
        raise InputError("evaluation.alpaca_eval: its dataset has no row of split test or ood; add one to its `sizes`")
    return pl.DataFrame(rows, schema=["example_id", "prompt", "reference"], orient="row")


def verdicts(
    asked: pl.DataFrame, responses: list[str], judge: Judge, cache: AnswerCache, progress: Callable[[int], None]
) -> pl.DataFrame:
    """Compare each response with its reference, in both orders.

    Args:
        asked: the frame that `references` returns.
        responses: the model's text for each row, in order.
        judge: compares the pairs.
        cache: verdicts of the same judge, which may come from an earlier run; new verdicts are added batch by batch.
        progress: receives the number of pairs that were judged.

    Returns:
        Columns VERDICT_SCHEMA, in the order of `asked`. `preferred_first` is the preference for the model's output,
        0 to 1, when the judge reads it first, and `preferred_second` when it reads it second; `preferred` is the mean
        of both; `flipped` says whether the two verdicts differ. All four are null if one order has no verdict.

    Raises:
        JudgeUnavailable: the judge cannot be asked, or gives no verdict on any pair.
    """
    pairs = []
    for (prompt, reference), response in zip(asked.select("prompt", "reference").iter_rows(), responses, strict=True):
        pairs += [Pair(prompt, response, reference), Pair(prompt, reference, response)]
    keys = [key_of(*pair) for pair in pairs]
    # Equal outputs are a tie; the judge is not asked, since only the order could decide its verdict.
    equal = {key: 0.5 for key, pair in zip(keys, pairs, strict=True) if pair.output_1 == pair.output_2}
    todo = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in cache and key not in equal}
    progress(len(pairs) - len(todo))
    for start in range(0, len(todo), PAIRS_AT_ONCE):
        batch = list(todo)[start : start + PAIRS_AT_ONCE]
        new = judge.compare([todo[key] for key in batch])
        cache.put({key: preference for key, preference in zip(batch, new, strict=True) if preference is not None})
        progress(len(batch))
    preferences = [equal.get(key, cache[key] if key in cache else None) for key in keys]
    if all(preference is None for preference in preferences):
        raise JudgeUnavailable(
            "no answer of the judge says which output it prefers; for an endpoint without log-probabilities set "
            "`annotator: alpaca_eval_gpt4` of the judge"
        )
    frame = asked.select("example_id", "prompt", "reference").with_columns(
        response=pl.Series(responses, dtype=pl.String),
        # A preference is for the second output of a pair: the reference, if the model's output came first.
        preferred_first=1 - pl.Series(preferences[::2], dtype=pl.Float64),
        preferred_second=pl.Series(preferences[1::2], dtype=pl.Float64),
    )
    both = pl.col("preferred_first").is_not_null() & pl.col("preferred_second").is_not_null()
    first, second = (pl.when(both).then(pl.col(f"preferred_{order}")) for order in ("first", "second"))
    return frame.with_columns(
        preferred_first=first,
        preferred_second=second,
        preferred=(first + second) / 2,
        flipped=(first - 0.5).sign() != (second - 0.5).sign(),
    ).select(*VERDICT_SCHEMA)


def alpaca_eval_examples(judged: pl.DataFrame, dataset: str, split: str) -> pl.DataFrame:
    """Return each judged instruction's part of `win_rate` and `position_bias`; columns EXAMPLE_SCHEMA.

    Win rate: the mean of `preferred`; a tie counts half. Position bias: the share of pairs whose verdict depends on the
    order.
    """
    judged = judged.filter(pl.col("preferred").is_not_null())
    ids, one = judged["example_id"], [1] * len(judged)
    return pl.concat(
        [
            example_rows(dataset, split, WIN_RATE, ids, judged["preferred"], one),
            example_rows(dataset, split, POSITION_BIAS, ids, judged["flipped"].cast(pl.Int32), one),
        ]
    )
