"""Columns of the token tables for the response tokens of a batch, and selections decided before training.

Selection by the teacher's measures reads these columns.

Shapes: N response tokens of some examples.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from tokenuq_ml.config import AblationSpec, registry
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.token_categories import CATEGORIES
from tokenuq_ml.errors import InputError, NonFiniteError
from tokenuq_ml.tables.parquet import read_table
from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_ml.training.selection import select
from tokenuq_ml.training.tokens import Tokens


class TokenColumns:
    """Columns of every response token of some examples.

    Args:
        names: names in `registry.COLUMNS`.
        tables: the tables that hold them, by name.
        examples: the examples.

    Raises:
        InputError: a table does not hold each of the tokens exactly once, or with a number that is not finite.
    """

    def __init__(self, names: Sequence[str], tables: Mapping[str, pl.DataFrame], examples: list[TokenizedExample]):
        ordered = sorted(examples, key=lambda example: example.example_id)
        lengths = [len(example.positions) for example in ordered]
        firsts = [0, *accumulate(lengths)]
        spans = zip(firsts, lengths, strict=False)
        self._span = {example.example_id: span for example, span in zip(ordered, spans, strict=False)}
        wanted = pl.DataFrame(
            {
                "example_id": [example.example_id for example in ordered for _ in example.positions],
                "position": [position for example in ordered for position in example.positions],
            },
            schema={"example_id": pl.String, "position": pl.Int32},
        )
        self._columns = {}
        for name in names:
            table, column = registry.COLUMNS[name]
            self._columns[name] = _tensor(_values_of_tokens(tables[table], table, column, wanted))
        losses = self._columns.get("teacher_loss")
        self.teacher_mean = float(losses.double().mean()) if losses is not None and len(losses) else float("nan")

    def of(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        """Return the columns of some of the examples' tokens, `[N]` each, by example, then position."""
        spans = [self._span[example.example_id] for example in examples]
        return {
            name: torch.cat([column[first : first + size] for first, size in spans]) if spans else column[:0]
            for name, column in self._columns.items()
        }


def read_columns(
    names: Sequence[str], folders: Mapping[str, str | Path], examples: list[TokenizedExample]
) -> TokenColumns:
    """Read `TokenColumns` from files.

    Args:
        names: names in `registry.COLUMNS`.
        folders: the folder of each table that holds them, by the table's name.
        examples: the examples.
    """
    wanted = [example.example_id for example in examples]
    tables = {
        table: read_table(folders[table]).filter(pl.col("example_id").is_in(wanted))
        for table in dict.fromkeys(registry.COLUMNS[name][0] for name in names)
    }
    return TokenColumns(names, tables, examples)


def static_selection(
    ablation: AblationSpec, columns: TokenColumns, examples: list[TokenizedExample]
) -> dict[str, Tensor]:
    """Return the selection among the tokens of all examples at once, for `scope: dataset`.

    The selector `loss` reads the teacher's losses here.

    Args:
        ablation: its rule selects.
        columns: what the rule reads; must hold `teacher_loss`.
        examples: the examples.

    Returns:
        Example id to mask over its response tokens.
    """
    ordered = sorted(examples, key=lambda example: example.example_id)
    lengths = [len(example.positions) for example in ordered]
    values = columns.of(ordered)
    tokens = Tokens(
        values["teacher_loss"],
        torch.repeat_interleave(torch.arange(len(ordered)), torch.tensor(lengths, dtype=torch.long)),
        tuple(example.example_id for example in ordered),
        values,
        columns.teacher_mean,
        seed=ablation.seed,
    )
    masks = select(ablation.select, tokens).split(lengths)
    return {example.example_id: mask for example, mask in zip(ordered, masks, strict=True)}


def _values_of_tokens(frame: pl.DataFrame, table: str, column: str, wanted: pl.DataFrame) -> pl.Series:
    rows = frame.select(pl.col("example_id").cast(pl.String), pl.col("position").cast(pl.Int32), value=pl.col(column))
    joined = wanted.join(rows, on=TOKEN_KEY, how="left", maintain_order="left")
    if len(joined) != len(wanted) or joined["value"].null_count():
        missing = joined.filter(pl.col("value").is_null())
        at = f", e.g. {missing['example_id'][0]} at {missing['position'][0]}" if len(missing) else ""
        raise InputError(
            f"{table}.{column}: {len(missing)} of {len(wanted)} response tokens of the train split have no row{at}, "
            f"{max(0, len(joined) - len(wanted))} have several; materialise {table} again"
        )
    broken = joined.filter(~pl.col("value").is_finite()) if joined["value"].dtype.is_float() else joined.clear()
    if len(broken):
        raise NonFiniteError(
            f"{table}.{column} is {broken['value'][0]} for {broken['example_id'][0]} at {broken['position'][0]} "
            f"({len(broken)} of {len(wanted)} tokens), and a selection would take it for the largest score; "
            f"materialise {table} again"
        )
    return joined["value"]


def _tensor(values: pl.Series) -> Tensor:
    if values.dtype.is_numeric():
        return torch.from_numpy(values.to_numpy().copy())
    codes = {category: code for code, category in enumerate(CATEGORIES)}
    return torch.from_numpy(values.cast(pl.String).replace_strict(codes, return_dtype=pl.Int64).to_numpy().copy())
