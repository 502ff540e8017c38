"""AlpacaEval: a model's outputs against a reference's, each pair judged in both orders.

AlpacaEval: Li et al. 2023; win rate as there, the mean over instructions of how far the model's output is
preferred. Knows texts and verdicts; neither who judges (`judge.py`) nor how outputs are generated.
"""

from collections.abc import Callable

import polars as pl

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.answer_cache import AnswerCache, key_of
from tokenuq_ml.evaluation.judge import Judge, JudgeUnavailable, Pair
from tokenuq_ml.evaluation.metrics import example_rows

PAIRS_AT_ONCE = 32
"""Verdicts that are kept together: what an interruption costs."""
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
"""The columns of `alpaca_eval_verdicts` without `n_tokens`, which only the caller knows."""


def references(examples: pl.DataFrame) -> pl.DataFrame:
    """`example_id`, `prompt` and `reference` of rows of the `examples` table: what is asked, and the output to beat.

    Raises:
        InputError: there is no row, or one is no single instruction with an output.
    """
    rows = []
    for row in examples.iter_rows(named=True):
        said = [message for message in row["messages"] if message["role"] != "system"]
        if [message["role"] for message in said] != ["user", "assistant"]:
            raise InputError(
                f"AlpacaEval example {row['example_id']}: needs one instruction and the reference's output; "
                "load the dataset with format: alpaca_eval"
            )
        rows.append((row["example_id"], said[0]["content"], said[1]["content"]))
    if not rows:
        raise InputError("evaluation.alpaca_eval: its dataset has no row of split test or ood; add one to its `sizes`")
    return pl.DataFrame(rows, schema=["example_id", "prompt", "reference"], orient="row")


def verdicts(
    asked: pl.DataFrame, responses: list[str], judge: Judge, cache: AnswerCache, progress: Callable[[int], None]
) -> pl.DataFrame:
    """Each response beside its reference, judged in both orders.

    Args:
        asked: the frame of `references`.
        responses: the model's text for each row, in order.
        kept: verdicts of this very judge, from an earlier run too; new ones are added as they come.
        progress: told how many pairs of outputs were judged.

    Returns:
        Columns VERDICT_SCHEMA, in the order of `asked`. `preferred_first` is how far the model's output is preferred,
        0 to 1, where the judge reads it first; `preferred` is the mean of both orders; `flipped` says that the
        verdicts of the two orders differ. All four are null where the judge's answer said nothing in either order.

    Raises:
        JudgeUnavailable: the judge cannot be asked, or said nothing of any pair.
    """
    pairs = []
    for (prompt, reference), response in zip(asked.select("prompt", "reference").iter_rows(), responses, strict=True):
        pairs += [Pair(prompt, response, reference), Pair(prompt, reference, response)]
    keys = [key_of(*pair) for pair in pairs]
    # Of two equal outputs neither is preferred, whatever a judge would make of their places.
    equal = {key: 0.5 for key, pair in zip(keys, pairs, strict=True) if pair.output_1 == pair.output_2}
    todo = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in cache and key not in equal}
    progress(len(pairs) - len(todo))
    for start in range(0, len(todo), PAIRS_AT_ONCE):
        batch = list(todo)[start : start + PAIRS_AT_ONCE]
        told = judge.compare([todo[key] for key in batch])
        cache.put({key: preference for key, preference in zip(batch, told, strict=True) if preference is not None})
        progress(len(batch))
    told = [equal.get(key, cache[key] if key in cache else None) for key in keys]
    if all(preference is None for preference in told):
        raise JudgeUnavailable("no answer of the judge said which output it prefers")
    frame = asked.select("example_id", "prompt", "reference").with_columns(
        response=pl.Series(responses, dtype=pl.String),
        # Told is how far the second of a pair is preferred: the reference where the model's output came first.
        preferred_first=1 - pl.Series(told[::2], dtype=pl.Float64),
        preferred_second=pl.Series(told[1::2], dtype=pl.Float64),
    )
    whole = pl.col("preferred_first").is_not_null() & pl.col("preferred_second").is_not_null()
    first, second = (pl.when(whole).then(pl.col(f"preferred_{place}")) for place in ("first", "second"))
    return frame.with_columns(
        preferred_first=first,
        preferred_second=second,
        preferred=(first + second) / 2,
        flipped=(first - 0.5).sign() != (second - 0.5).sign(),
    ).select(*VERDICT_SCHEMA)


def alpaca_eval_examples(judged: pl.DataFrame, dataset: str, split: str) -> pl.DataFrame:
    """What each judged instruction adds to `win_rate` and `position_bias`; columns EXAMPLE_SCHEMA.

    Win rate: the mean of `preferred`, ties half. Position bias: the share of pairs whose verdict flips with the order.
    """
    judged = judged.filter(pl.col("preferred").is_not_null())
    ids, one = judged["example_id"], [1] * len(judged)
    return pl.concat(
        [
            example_rows(dataset, split, WIN_RATE, ids, judged["preferred"], one),
            example_rows(dataset, split, POSITION_BIAS, ids, judged["flipped"].cast(pl.Int32), one),
        ]
    )
