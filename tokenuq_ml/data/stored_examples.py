"""Tokenised examples read from a partition of `tokenized_dataset`, in bounded memory or as a list."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.tables.parquet import stream_table


class StoredExamples:
    """The rows of a `tokenized_dataset` partition, of all or some splits, in the order of ids.

    Each iteration reads the file again, a few rows at a time, in bounded memory.

    Args:
        folder: of the partition.
        splits: to read; None: all.
        first: row of the table to begin with.
        count: rows of the table to read; None: all.
    """

    _COLUMNS = ["example_id", "dataset", "split", "input_ids", "response_mask"]

    def __init__(
        self, folder: str | Path, splits: Sequence[str] | None = None, first: int = 0, count: int | None = None
    ):
        self.folder, self.splits = Path(folder), splits
        self.first, self.count = first, count

    def __iter__(self) -> Iterator[TokenizedExample]:
        for rows in stream_table(self.folder, [*self._COLUMNS, _WEIGHTS], first=self.first, count=self.count):
            names = zip(*(rows.column(name).to_pylist() for name in self._COLUMNS[:3]), strict=True)
            lists = [_arrays(rows.column(name)) for name in self._COLUMNS[3:]]
            # Tables of earlier versions have no weights; pyarrow leaves out a column that a file lacks.
            weights = _arrays(rows.column(_WEIGHTS)) if _WEIGHTS in rows.schema.names else [_NONE] * rows.num_rows
            for (example_id, dataset, split), ids, mask, weight in zip(names, *lists, weights, strict=True):
                if self.splits is None or split in self.splits:
                    # Copies: a view would keep all rows in memory that were read with it.
                    arrays = ids.copy(), mask.copy(), weight.copy() if len(weight) else None
                    yield TokenizedExample(example_id, sys.intern(dataset), sys.intern(split), *arrays)


_WEIGHTS = "token_weight"
_NONE = np.empty(0, np.float32)
"""The weights of an example that has none: Arrow reads null as an empty list."""


def _arrays(lists: pa.ListArray) -> list[np.ndarray]:
    """Return a view per row of an Arrow list column."""
    ends = lists.offsets.to_numpy()
    return np.split(lists.values.to_numpy(zero_copy_only=False)[ends[0] : ends[-1]], ends[1:-1] - ends[0])


def read_examples(folder: str | Path, splits: Sequence[str] | None = None) -> list[TokenizedExample]:
    """Return `StoredExamples` as a list, for training, which reads examples in any order."""
    return list(StoredExamples(folder, splits))
