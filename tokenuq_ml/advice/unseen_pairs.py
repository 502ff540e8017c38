"""Pairs of neighbouring tokens that training texts do not have: a measure of how rare the parts of a dataset are."""

import polars as pl

_WIDTH = 2**32
"""More than any token id, so that a pair is one number."""
_PAIR = pl.element().cast(pl.Int64).shift(1) * _WIDTH + pl.element().cast(pl.Int64)


def pair_counts(texts: pl.LazyFrame) -> pl.DataFrame:
    """Return `example_id, pairs, unseen_pairs` of the validation examples.

    Pairs are of the complete text, prompt included: in many datasets it is the prompt that says what is rare. Those
    that every training example has are the chat template's, and are not counted.

    Args:
        texts: the table `tokenized_dataset`.
    """
    split = pl.col("split").cast(pl.String)
    pairs = texts.select(
        "example_id", split.alias("split"), pair=pl.col("input_ids").list.eval(_PAIR).list.drop_nulls()
    )
    train = pairs.filter(pl.col("split") == "train")
    examples = train.select(pl.len()).collect().item()
    of_train = train.select(pl.col("pair").list.unique()).explode("pair").group_by("pair").agg(found_in=pl.len())
    seen = of_train.collect(engine="streaming")
    counted = pairs.filter(pl.col("split") == "validation").explode("pair").drop_nulls("pair")
    counted = counted.join(seen.lazy(), on="pair", how="left").filter(
        pl.col("found_in").fill_null(0) < max(examples, 1)
    )
    by_example = counted.group_by("example_id").agg(pairs=pl.len(), unseen_pairs=pl.col("found_in").is_null().sum())
    return by_example.collect(engine="streaming")
