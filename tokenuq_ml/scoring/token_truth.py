"""The distributions that generated the response tokens of a synthetic language, for batches of its examples.

Shapes: N response tokens of some examples, S ids that are possible (the most of any of the N tokens).
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.true_distributions import TrueDistributions
from tokenuq_ml.tables.parquet import read_table
from tokenuq_ml.tables.schemas import TOKEN_KEY

REMEDY = "materialise tokenized_dataset again"
_DISTRIBUTIONS = ("probabilities", "clean_probabilities")
_SUM_ERROR = 1e-6
"""How far the probabilities of a token may be from 1 in sum."""


class TokenTruth:
    """The true distributions of every response token of some examples, by example and position.

    Args:
        rows: rows of `token_truth`, in any order; other columns are ignored.

    Raises:
        InputError: the probabilities of a token are no distribution over its support.
    """

    def __init__(self, rows: pl.DataFrame):
        rows = rows.with_columns(pl.col("example_id").cast(pl.String)).sort(*TOKEN_KEY)
        _require_distributions(rows)
        lengths = rows["support"].list.len().to_numpy().astype(np.int64)
        self._firsts = np.concatenate([[0], np.cumsum(lengths)])
        self._support = _flat(rows["support"], np.int64)
        self._probabilities = [_flat(rows[name], np.float64) for name in _DISTRIBUTIONS]
        self._positions = rows["position"].to_numpy().astype(np.int64)
        counts = rows.group_by("example_id", maintain_order=True).len()
        ends = np.cumsum(counts["len"].to_numpy())
        self._rows = {
            name: (int(end - count), int(end)) for (name, count), end in zip(counts.iter_rows(), ends, strict=True)
        }

    @classmethod
    def read(cls, folder: str | Path, example_ids: Collection[str] | None = None) -> "TokenTruth":
        """Read the table `token_truth`, of some examples or of all."""
        rows = read_table(folder)
        if example_ids is not None:
            rows = rows.filter(pl.col("example_id").is_in(list(example_ids)))
        return cls(rows)

    def has(self, example: TokenizedExample) -> bool:
        """Return whether the table has rows of the example."""
        return example.example_id in self._rows

    def of(self, examples: Sequence[TokenizedExample]) -> TrueDistributions:
        """Return the distributions of the examples' N response tokens, by example, then position.

        Examples of other datasets have no row in the table: their distributions are not known.

        Raises:
            InputError: an example has rows, but not for each of its response tokens.
        """
        row_N = np.concatenate([np.empty(0, np.int64), *(self._rows_of(example) for example in examples)])
        is_known_N = row_N >= 0
        first_N = self._firsts[row_N]
        size_N = np.where(is_known_N, self._firsts[row_N + is_known_N] - first_N, 0)
        # At least one column, so that a batch without a known token has a shape too.
        within_NS = np.arange(max(1, size_N.max(initial=0))) < size_N[:, None]
        index_NS = np.where(within_NS, first_N[:, None] + np.arange(within_NS.shape[1]), 0)
        columns = (self._support, *self._probabilities)
        support_NS, probability_NS, clean_NS = (_padded(column, index_NS, within_NS) for column in columns)
        return TrueDistributions(support_NS, probability_NS, clean_NS, torch.from_numpy(is_known_N))

    def _rows_of(self, example: TokenizedExample) -> np.ndarray:
        """Return the row of each response token; -1 where the table has none of the example."""
        positions = np.asarray(example.positions, np.int64)
        span = self._rows.get(example.example_id)
        if span is None:
            return np.full(len(positions), -1)
        known = self._positions[slice(*span)]
        place = np.minimum(np.searchsorted(known, positions), len(known) - 1)
        if len(missing := positions[known[place] != positions]):
            raise InputError(
                f"token_truth has no row for token {missing[0]} of {example.example_id}, but has rows for others of "
                f"its response; {REMEDY}"
            )
        return span[0] + place


def _require_distributions(rows: pl.DataFrame) -> None:
    """Raise if a token's probabilities are not one per id, below 0, or do not sum to 1."""
    for name in _DISTRIBUTIONS:
        values = pl.col(name)
        is_sound = (
            (values.list.len() == pl.col("support").list.len())
            & (values.list.min() >= 0)
            & ((values.list.sum() - 1).abs() <= _SUM_ERROR)
        )
        broken = rows.filter(~is_sound.fill_null(False))
        if len(broken):
            example, position, given = broken.select(*TOKEN_KEY, name).row(0)
            raise InputError(
                f"token_truth.{name} of token {position} of {example} is no distribution over its support ({given}); "
                f"{REMEDY}"
            )


def _flat(column: pl.Series, dtype: type) -> np.ndarray:
    """Return the values of a column of lists, with one more at the end, so that no index is out of bounds."""
    values: np.ndarray = column.explode(empty_as_null=False).to_numpy().astype(dtype)
    return np.concatenate([values, np.zeros(1, dtype)])


def _padded(values: np.ndarray, index_NS: np.ndarray, within_NS: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(within_NS, values[index_NS], 0))
