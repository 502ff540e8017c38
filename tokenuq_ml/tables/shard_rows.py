"""Rows that come batch by batch, and are written shard by shard: tables are written in order."""

from collections.abc import Callable, Iterable

import polars as pl


class ShardRows:
    """The rows of consecutive shards.

    Args:
        sizes: the number of rows of each shard.
        write: called with the rows of each complete shard.

    Attributes:
        complete: the number of complete shards.
    """

    def __init__(self, sizes: Iterable[int], write: Callable[[pl.DataFrame], None]):
        self._sizes, self._write = iter(sizes), write
        self._rows: list[pl.DataFrame] = []
        self.complete, self._missing = 0, next(self._sizes, None)

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows: in any order within a shard, and those of a shard after all of the shard before."""
        while self._missing is not None and len(rows) >= self._missing:
            self._write(pl.concat([*self._rows, rows.head(self._missing)]))
            rows, self._rows = rows.slice(self._missing), []
            self.complete, self._missing = self.complete + 1, next(self._sizes, None)
        if len(rows):
            if self._missing is None:
                raise ValueError(f"{len(rows)} rows more than the shards have")
            self._rows.append(rows)
            self._missing -= len(rows)

    @property
    def begun(self) -> frozenset[str]:
        """The examples of the first incomplete shard that have come."""
        return frozenset(example_id for rows in self._rows for example_id in rows["example_id"].unique())
