"""The data of the token explorer, packed for its script: columns of 16 or 32 bits, each text once, compressed."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenuq_ml.config import REFERENCE_ROWS, TEACHER_ROW
from tokenuq_ml.reports.explorer_examples import MAX_TOKENS
from tokenuq_ml.tables.schemas import TOKEN_KEY

MEASURES = ("loss", "entropy", "bald")


@dataclass(frozen=True)
class Students:
    """Losses of held-out tokens under each student, and the tokens that its training selected; by ablation."""

    held_out: Mapping[str, pl.LazyFrame] = field(default_factory=dict)
    """`example_id, position, loss`."""
    selections: Mapping[str, pl.LazyFrame] = field(default_factory=dict)
    """The table `selections`."""

    @property
    def names(self) -> list[str]:
        """The ablations."""
        return list(dict.fromkeys([*self.held_out, *self.selections]))


@dataclass(frozen=True)
class ExplorerTables:
    """What the explorer shows of its examples."""

    tokens: pl.LazyFrame
    """`token_losses` joined with `token_uncertainty`."""
    alternatives: pl.LazyFrame
    """The table `token_alternatives`."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """example_id -> the prompt, if it is known."""
    students: Students = Students()
    scored_by: str = TEACHER_ROW
    """The model that `loss`, `entropy` and the alternatives are of."""


def pack(tables: ExplorerTables, examples: pl.DataFrame, by: str = "loss") -> bytes:
    """Return the compressed data: the header's length (uint32), the header (JSON), and the columns.

    All numbers are little-endian, at multiples of 4 bytes. The arguments are those of `explorer.explorer`.
    """
    ids, students, texts, categories = examples["example_id"].to_list(), tables.students, _Dictionary(), _Dictionary()
    rows = _token_rows(tables.tokens, ids)
    places = rows.group_by("number", maintain_order=True).agg(first=pl.col("index").first(), count=pl.len())
    firsts, counts = (dict(places.select("number", column).iter_rows()) for column in ("first", "count"))
    first = pl.col("number").replace_strict(firsts, return_dtype=pl.Int64)
    shown = rows.select(*TOKEN_KEY, "index", "number", first=first)
    columns = _token_columns(rows, texts, categories)
    columns |= _alternative_columns(tables.alternatives, ids, shown, texts)
    scored, columns["student_loss"] = _scored(students, ids, shown, counts)
    passes, columns["pass_loss"], columns["pass_selected"] = _passes(students, ids, shown, counts)
    header = {
        "by": by,
        "scored_by": tables.scored_by,
        "examples": [
            {
                **row,
                "first": firsts[number],
                "count": counts[number],
                "prompt": tables.prompts.get(row["example_id"], ""),
            }
            for number, row in enumerate(examples.iter_rows(named=True))
        ],
        "texts": texts.values,
        "categories": categories.values,
        "models": [*REFERENCE_ROWS, *students.names],
        # The 95th percentile has the full colour; with the maximum, a few outliers would leave the rest pale.
        "tops": {name: max(float(rows[name].quantile(0.95) or 0), 1e-9) for name in MEASURES},
        "scored": scored,
        "passes": passes,
    }
    return _assemble(header, columns)


def _token_rows(tokens: pl.LazyFrame, ids: list[str]) -> pl.DataFrame:
    """Return the shown tokens in order, with the `number` of their example and their own `index`."""
    order = pl.DataFrame({"example_id": ids, "number": range(len(ids))}, schema_overrides={"example_id": pl.String})
    return (
        tokens.filter(pl.col("example_id").is_in(ids))
        .select(*TOKEN_KEY, pl.col("token", "category").cast(pl.String), "rank", *MEASURES, "base_loss")
        .collect()
        .join(order, on="example_id")
        .sort("number", "position")
        .filter(pl.int_range(pl.len()).over("number") < MAX_TOKENS)
        .with_row_index("index")
    )


def _token_columns(rows: pl.DataFrame, texts: "_Dictionary", categories: "_Dictionary") -> dict[str, NDArray]:
    return {
        "text": texts.ids(rows["token"]),
        "position": rows["position"].to_numpy().astype("<u4"),
        "rank": rows["rank"].to_numpy().astype("<u4"),
        **{name: _half(rows[name]) for name in (*MEASURES, "base_loss")},
        "category": categories.ids(rows["category"]),
    }


def _alternative_columns(
    alternatives: pl.LazyFrame, ids: list[str], shown: pl.DataFrame, texts: "_Dictionary"
) -> dict[str, NDArray]:
    chosen = alternatives.filter(pl.col("example_id").is_in(ids)).collect()
    chosen = chosen.join(shown, on=TOKEN_KEY).sort("index", "choice")
    return {
        "choice_of": chosen["index"].to_numpy().astype("<u4"),
        "choice_text": texts.ids(chosen["token"].cast(pl.String)),
        "choice_probability": _half(chosen["probability"]),
    }


def _scored(students: Students, ids: list[str], shown: pl.DataFrame, counts: dict[int, int]) -> tuple[list, NDArray]:
    """Return `[model, example, first]` of each student's losses on an example, and the losses that `first` indexes."""
    entries, pools, size = [], [], 0
    for name, table in students.held_out.items():
        rows = table.filter(pl.col("example_id").is_in(ids)).select(*TOKEN_KEY, "loss").collect()
        rows = rows.join(shown, on=TOKEN_KEY).with_columns(group=pl.col("number"))
        found, pool = _pool(rows, counts, {"loss": np.nan})
        entries += [[students.names.index(name) + 2, number, size + first] for number, first in found.items()]
        pools.append(pool["loss"])
        size += len(pools[-1])
    return entries, _half(np.concatenate(pools)) if pools else np.zeros(0, "<f2")


def _passes(
    students: Students, ids: list[str], shown: pl.DataFrame, counts: dict[int, int]
) -> tuple[list, NDArray, NDArray]:
    """Return `[model, example, step, first]` of each training pass over an example, and its losses and selection."""
    entries, pools, size = [], [], 0
    for name, table in students.selections.items():
        rows = table.filter(pl.col("example_id").is_in(ids)).select("step", *TOKEN_KEY, "loss", "selected").collect()
        rows = rows.join(shown, on=TOKEN_KEY).with_columns(group=pl.struct("step", "number").rank("dense"))
        found, pool = _pool(rows, counts, {"loss": np.nan, "selected": 0})
        named = dict(rows.select("group", pl.struct("number", "step")).unique().iter_rows())
        for group, first in found.items():
            at = named[group]
            entries.append([students.names.index(name) + 2, at["number"], at["step"], size + first])
        pools.append(pool)
        size += len(pool["loss"])
    entries.sort()
    if not pools:
        return entries, np.zeros(0, "<f2"), np.zeros(0, "u1")
    return (
        entries,
        _half(np.concatenate([pool["loss"] for pool in pools])),
        np.concatenate([pool["selected"] for pool in pools]).astype("u1"),
    )


def _pool(
    rows: pl.DataFrame, counts: dict[int, int], fill: dict[str, float]
) -> tuple[dict[int, int], dict[str, NDArray]]:
    """Return where each group (an example, or an example at a step) begins, and the values of its shown tokens.

    A token that `rows` lacks has the value of `fill`.
    """
    groups = rows.select("group", "number").unique().sort("group")
    sizes = [counts[number] for number in groups["number"]]
    begins = dict(zip(groups["group"].to_list(), np.cumsum([0, *sizes])[:-1].tolist(), strict=True))
    place = rows.select(
        pl.col("group").replace_strict(begins, return_dtype=pl.Int64) + pl.col("index").cast(pl.Int64) - pl.col("first")
    ).to_series()
    pool = {name: np.full(sum(sizes), empty, dtype="f8") for name, empty in fill.items()}
    for name, values in pool.items():
        values[place.to_numpy()] = rows[name].cast(pl.Float64).to_numpy()
    return begins, pool


class _Dictionary:
    """Distinct texts, which are stored once and referred to by number."""

    def __init__(self):
        self.values: list[str] = []
        self._ids: dict[str, int] = {}

    def ids(self, texts: pl.Series) -> NDArray:
        for text in texts.unique(maintain_order=True):
            if text not in self._ids:
                self._ids[text] = len(self.values)
                self.values.append(text)
        return np.array([self._ids[text] for text in texts], dtype="<u4")


def _half(values: pl.Series | NDArray) -> NDArray:
    """Convert to 16 bits: three significant digits, from 6e-8 to 65504 nats."""
    with np.errstate(over="ignore"):
        return np.asarray(values.to_numpy() if isinstance(values, pl.Series) else values).astype("<f2")


def _assemble(header: dict, columns: dict[str, NDArray]) -> bytes:
    blocks, offset, where = [], 0, {}
    for name, values in columns.items():
        data = values.tobytes()
        where[name] = [values.dtype.str.lstrip("<|"), offset, len(values)]
        blocks.append(data + b"\0" * (-len(data) % 4))
        offset += len(blocks[-1])
    text = json.dumps({**header, "columns": where}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    # mtime=0, so that the same tables give the same page.
    return gzip.compress(len(text).to_bytes(4, "little") + text + b"".join(blocks), mtime=0)
