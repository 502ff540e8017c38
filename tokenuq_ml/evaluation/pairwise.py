"""Outputs of two models of one study, which a judge compares in both orders."""

import polars as pl

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import BIAS_VERSUS, WIN_RATE_VERSUS, example_rows

_ANSWER = "assistant"


def asked_prompts(examples: pl.DataFrame) -> pl.DataFrame:
    """Return `example_id` and `prompt`, as the judge reads it, of rows of the `examples` table.

    The prompt is everything before the last answer: one question as it is, a longer conversation with a role before
    each turn.

    Raises:
        InputError: there is no row, or a row asks nothing.
    """
    rows = []
    for row in examples.iter_rows(named=True):
        turns = list(row["messages"])
        while turns and turns[-1]["role"] == _ANSWER:
            turns.pop()
        if not any(turn["role"] == "user" for turn in turns):
            raise InputError(
                f"example {row['example_id']}: asks nothing; name a dataset of conversations in "
                "evaluation.pairwise.dataset"
            )
        texts = [turn["content"] if len(turns) == 1 else f"{turn['role']}: {turn['content']}" for turn in turns]
        rows.append((row["example_id"], "\n\n".join(texts)))
    if not rows:
        raise InputError("evaluation.pairwise: its dataset has no row of split test or ood; add one to its `sizes`")
    return pl.DataFrame(rows, schema=["example_id", "prompt"], orient="row")


def with_references(asked: pl.DataFrame, answers: pl.DataFrame, versus: str) -> pl.DataFrame:
    """Add `reference`, the output of the other model to each prompt.

    Args:
        asked: the frame that `asked_prompts` returns.
        answers: table `pairwise_answers` of the other model.
        versus: its name.

    Raises:
        InputError: the other model was asked other prompts.
    """
    given = answers.select("example_id", "prompt", reference="response")
    joined = asked.join(given, on=["example_id", "prompt"], how="left", validate="1:1", maintain_order="left")
    if joined["reference"].null_count() or len(given) != len(asked):
        raise InputError(
            f"evaluation.pairwise: {versus} has answered other prompts than these; materialise the evaluation of "
            f"{versus} again"
        )
    return joined


def pairwise_examples(judged: pl.DataFrame, dataset: str, split: str, versus: str) -> pl.DataFrame:
    """Return each judged prompt's part of the win rate and the position bias; columns EXAMPLE_SCHEMA.

    Args:
        judged: the frame that `alpaca_eval.verdicts` returns. Prompts without a verdict are left out.
        dataset: the dataset of the prompts.
        split: that the results count for.
        versus: name of the other model, as the study writes it.
    """
    judged = judged.filter(pl.col("preferred").is_not_null())
    ids, one = judged["example_id"], [1] * len(judged)
    return pl.concat(
        [
            example_rows(dataset, split, f"{WIN_RATE_VERSUS}{versus}", ids, judged["preferred"], one),
            example_rows(dataset, split, f"{BIAS_VERSUS}{versus}", ids, judged["flipped"].cast(pl.Int32), one),
        ]
    )


def tied_examples(asked: pl.DataFrame, dataset: str, split: str, versus: str) -> pl.DataFrame:
    """Return the win rate of a model against itself: one half on each prompt, by definition.

    With it, the report's difference to this model is a win rate minus one half.
    """
    ids = asked["example_id"]
    return example_rows(dataset, split, f"{WIN_RATE_VERSUS}{versus}", ids, [0.5] * len(asked), [1] * len(asked))
