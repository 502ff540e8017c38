"""The examples that the token explorer shows: the most uncertain ones of each split, within a budget of bytes."""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from tokenuq_ml.data.examples import TEXT_ROLE

SPLITS = ("test", "validation", "ood", "train")
"""In the order in which the explorer lists them."""
MAX_EXAMPLES = 200
MAX_TOKENS = 1024
"""Tokens of an example; the rest of a longer answer is cut, and the page says so."""
MAX_BYTES = 5_000_000
"""Bytes of the packed numbers before compression, which about makes up for base64."""
TOKEN_BYTES, ALTERNATIVE_BYTES, STUDENT_LOSS_BYTES, PASS_BYTES = 22, 6, 2, 3
"""Bytes per token: of its own numbers, of an alternative, of its loss under a student, and of its loss and selection at
a step of training."""
_TRAINED = ("assistant", TEXT_ROLE)


def most_uncertain(tokens: pl.LazyFrame, count: int = MAX_EXAMPLES) -> pl.DataFrame:
    """Return the `count` examples with the highest mean BALD, taken from the splits in turn; columns of `means_of`."""
    means = means_of(tokens).sort("bald", "example_id", descending=[True, False])
    turn = means.with_columns(turn=pl.int_range(pl.len()).over("split"))
    return turn.sort("turn", _split_rank()).drop("turn").head(count)


def means_of(tokens: pl.LazyFrame, ids: list[str] | None = None) -> pl.DataFrame:
    """Return `example_id, dataset, split, tokens, loss, bald` of examples; the last two are means, in nats.

    Args:
        tokens: the two token tables joined.
        ids: the examples, in the order of the result; all examples if None.
    """
    means = (
        (tokens if ids is None else tokens.filter(pl.col("example_id").is_in(ids)))
        .group_by("example_id")
        .agg(
            pl.col("dataset", "split").first().cast(pl.String),
            pl.len().alias("tokens"),
            pl.col("loss", "bald").mean(),
        )
        .collect(engine="streaming")
    )
    return (
        means if ids is None else pl.DataFrame({"example_id": ids}).join(means, on="example_id", maintain_order="left")
    )


def _split_rank() -> pl.Expr:
    return pl.col("split").replace_strict({split: i for i, split in enumerate(SPLITS)}, default=len(SPLITS))


def within_budget(examples: pl.DataFrame, students: int, alternatives: int, passes: int) -> pl.DataFrame:
    """Return the first examples whose numbers fit MAX_BYTES, at least one, sorted by split and BALD.

    Args:
        examples: columns of `means_of`, in order of preference.
        students: number of students.
        alternatives: alternatives per held-out token.
        passes: how often training meets an example.
    """
    train = pl.col("split") == "train"
    held_out = alternatives * ALTERNATIVE_BYTES + students * STUDENT_LOSS_BYTES
    per_token = TOKEN_BYTES + pl.when(train).then(students * passes * PASS_BYTES).otherwise(held_out)
    size = (pl.col("tokens").clip(upper_bound=MAX_TOKENS) * per_token).cum_sum()
    kept = examples.filter((size <= MAX_BYTES) | (pl.int_range(pl.len()) == 0))
    return kept.sort(_split_rank(), "bald", "example_id", descending=[False, True, False])


def prompts_of(tables: Iterable[pl.DataFrame]) -> dict[str, str]:
    """Return example_id -> its prompt, of tables `examples`."""
    return {
        example_id: prompt_of(messages)
        for table in tables
        for example_id, messages in table.select("example_id", "messages").iter_rows()
    }


def prompt_of(messages: Iterable[Mapping[str, Any]]) -> str:
    """Return all turns but the assistant's; raw text has none."""
    return "\n\n".join(str(turn["content"]) for turn in messages if turn["role"] not in _TRAINED)
