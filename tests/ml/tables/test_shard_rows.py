"""Rows come batch by batch, or several shards at once, and are written shard by shard."""

import polars as pl
import pytest

from tokenuq_ml.tables.shard_rows import ShardRows

SIZES = [3, 1, 4]


def rows(first: int, end: int) -> pl.DataFrame:
    return pl.DataFrame({"example_id": [f"e{number // 2}" for number in range(first, end)], "x": range(first, end)})


@pytest.mark.parametrize("cuts", [[8], [1, 2, 3, 4, 5, 6, 7, 8], [2, 5, 8], [3, 4, 8], [0, 8, 8]])
def test_whole_shards_are_written_in_order(cuts):
    written = []
    shards = ShardRows(SIZES, written.append)
    for first, end in zip([0, *cuts], cuts, strict=False):
        shards.add(rows(first, end))
    assert [frame["x"].to_list() for frame in written] == [[0, 1, 2], [3], [4, 5, 6, 7]]
    assert shards.complete == 3 and shards.begun == frozenset()


def test_what_a_shard_has_begun_is_known():
    shards = ShardRows(SIZES, lambda frame: None)
    shards.add(rows(0, 6))
    assert (shards.complete, shards.begun) == (2, {"e2"})
    shards.add(rows(6, 8))
    with pytest.raises(ValueError, match="1 rows more than the shards have"):
        shards.add(rows(8, 9))
