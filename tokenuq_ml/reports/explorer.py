"""The token explorer: the numbers of a few hundred examples, packed into a page, and the frame that its script fills.

Decides which examples are shown and how they are stored: columns of 16 or 32 bits, each text once, compressed.
How they look is `explorer.js`'s, which gets text from data only as text. Computes no number.
"""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tokenuq_ml.config import REFERENCE_ROWS
from tokenuq_ml.tables.schemas import TOKEN_KEY

SPLITS = ("test", "validation", "ood", "train")
"""In the order that they are listed."""
MOST_EXAMPLES = 200
MOST_TOKENS = 1024
"""Of one example; a longer answer is cut, and the page says so."""
MOST_BYTES = 5_000_000
"""Of the packed numbers, as they would be without compression, which about makes up for base64."""
TOKEN_BYTES, CHOICE_BYTES, SCORED_BYTES, PASS_BYTES = 22, 6, 2, 3
"""Of a token: what all have; an alternative; a loss under a student; a loss and a selection at a step."""
COLUMNS = ("text", "category", "position", "rank", "loss", "entropy", "bald", "base_loss")
MEASURES = ("loss", "entropy", "bald")


@dataclass(frozen=True)
class Students:
    """What is known of students, by ablation: losses of held-out tokens, and what training selected at which step."""

    held_out: Mapping[str, pl.LazyFrame] = field(default_factory=dict)
    """`example_id, position, loss`."""
    selections: Mapping[str, pl.LazyFrame] = field(default_factory=dict)
    """The table `selections`."""

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([*self.held_out, *self.selections]))


def most_uncertain(tokens: pl.LazyFrame, count: int = MOST_EXAMPLES) -> pl.DataFrame:
    """Of each split in turn the example with the next highest mean BALD, until there are `count`; as `means_of`."""
    means = means_of(tokens).sort("bald", "example_id", descending=[True, False])
    turn = means.with_columns(turn=pl.int_range(pl.len()).over("split"))
    return turn.sort("turn", _place()).drop("turn").head(count)


def means_of(tokens: pl.LazyFrame, ids: list[str] | None = None) -> pl.DataFrame:
    """`example_id, dataset, split, tokens, loss, bald` (means, nats) of all examples, or of `ids` in that order.

    Args:
        tokens: the two token tables joined.
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


def _place() -> pl.Expr:
    return pl.col("split").replace_strict({split: i for i, split in enumerate(SPLITS)}, default=len(SPLITS))


def within_budget(examples: pl.DataFrame, students: int, choices: int, passes: int) -> pl.DataFrame:
    """The first of `examples` whose numbers fit `MOST_BYTES`, one at least; then by split and BALD."""
    train = pl.col("split") == "train"
    held_out = choices * CHOICE_BYTES + students * SCORED_BYTES
    a_token = TOKEN_BYTES + pl.when(train).then(students * passes * PASS_BYTES).otherwise(held_out)
    size = (pl.col("tokens").clip(upper_bound=MOST_TOKENS) * a_token).cum_sum()
    kept = examples.filter((size <= MOST_BYTES) | (pl.int_range(pl.len()) == 0))
    return kept.sort(_place(), "bald", "example_id", descending=[False, True, False])


def prompts_of(tables: Iterable[pl.DataFrame]) -> dict[str, str]:
    """example_id -> all that is not the assistant's, of tables `examples`."""
    return {
        example_id: "\n\n".join(turn["content"] for turn in messages if turn["role"] != "assistant")
        for table in tables
        for example_id, messages in table.select("example_id", "messages").iter_rows()
    }


def explorer(
    tokens: pl.LazyFrame,
    examples: pl.DataFrame,
    alternatives: pl.LazyFrame,
    prompts: Mapping[str, str],
    students: Students,
    by: str = "loss",
) -> str:
    """The fragment of a page: controls, an empty frame, and the data; `html.page` adds script and style.

    Args:
        tokens: `token_losses` joined with `token_uncertainty`.
        examples: which to show, in that order; as of `most_uncertain`.
        alternatives: the table `token_alternatives`.
        prompts: example_id -> what the model was asked, where it is known.
        by: what tokens are coloured by at first: loss, entropy, bald, selected or difference.
    """
    packed = pack(tokens, examples, alternatives, prompts, students, by)
    data = base64.b64encode(packed).decode()
    return f'{FRAME}<script type="application/octet-stream" id="explorer-data">{data}</script>'


def pack(
    tokens: pl.LazyFrame,
    examples: pl.DataFrame,
    alternatives: pl.LazyFrame,
    prompts: Mapping[str, str],
    students: Students,
    by: str = "loss",
) -> bytes:
    """gzip of: the header's length (uint32), the header (JSON), columns; all little-endian, at multiples of 4 bytes."""
    ids = examples["example_id"].to_list()
    order = pl.DataFrame({"example_id": ids, "number": range(len(ids))}, schema_overrides={"example_id": pl.String})
    rows = (
        tokens.filter(pl.col("example_id").is_in(ids))
        .select(*TOKEN_KEY, pl.col("token", "category").cast(pl.String), "rank", *MEASURES, "base_loss")
        .collect()
        .join(order, on="example_id")
        .sort("number", "position")
        .filter(pl.int_range(pl.len()).over("number") < MOST_TOKENS)
        .with_row_index("index")
    )
    places = rows.group_by("number", maintain_order=True).agg(pl.col("index").first().alias("first"), pl.len())
    firsts, counts = (
        dict(places.select("number", "first").iter_rows()),
        dict(places.select("number", "len").iter_rows()),
    )
    shown = rows.select(
        *TOKEN_KEY, "index", "number", first=pl.col("number").replace_strict(firsts, return_dtype=pl.Int64)
    )

    texts = _Dictionary()
    columns: dict[str, NDArray] = {
        "text": texts.ids(rows["token"]),
        "position": rows["position"].to_numpy().astype("<u4"),
        "rank": rows["rank"].to_numpy().astype("<u4"),
        **{name: _half(rows[name]) for name in (*MEASURES, "base_loss")},
    }
    categories = _Dictionary()
    columns["category"] = categories.ids(rows["category"])
    chosen = (
        alternatives.filter(pl.col("example_id").is_in(ids)).collect().join(shown, on=TOKEN_KEY).sort("index", "choice")
    )
    columns["choice_of"] = chosen["index"].to_numpy().astype("<u4")
    columns["choice_text"] = texts.ids(chosen["token"].cast(pl.String))
    columns["choice_probability"] = _half(chosen["probability"])
    scored, losses = _scored(students, ids, shown, counts)
    columns["student_loss"] = losses
    passes, columns["pass_loss"], columns["pass_selected"] = _passes(students, ids, shown, counts)
    header = {
        "by": by,
        "examples": [
            {**row, "first": firsts[number], "count": counts[number], "prompt": prompts.get(row["example_id"], "")}
            for number, row in enumerate(examples.iter_rows(named=True))
        ],
        "texts": texts.values,
        "categories": categories.values,
        "models": [*REFERENCE_ROWS, *students.names],
        # The 95th percentile is full colour: a few outliers would leave all else pale.
        "tops": {name: max(float(rows[name].quantile(0.95) or 0), 1e-9) for name in MEASURES},
        "scored": scored,
        "passes": passes,
    }
    return _assemble(header, columns)


def _scored(students: Students, ids: list[str], shown: pl.DataFrame, counts: dict[int, int]) -> tuple[list, NDArray]:
    """`[model, example, first]` of each student's losses on an example, and the losses that they begin in."""
    entries, pools, size = [], [], 0
    for name, table in students.held_out.items():
        rows = (
            table.filter(pl.col("example_id").is_in(ids)).select(*TOKEN_KEY, "loss").collect().join(shown, on=TOKEN_KEY)
        )
        rows = rows.with_columns(group=pl.col("number"))
        found, pool = _pool(rows, counts, {"loss": np.nan})
        entries += [[students.names.index(name) + 2, number, size + first] for number, first in found.items()]
        pools.append(pool["loss"])
        size += len(pools[-1])
    return entries, _half(np.concatenate(pools)) if pools else np.zeros(0, "<f2")


def _passes(
    students: Students, ids: list[str], shown: pl.DataFrame, counts: dict[int, int]
) -> tuple[list, NDArray, NDArray]:
    """`[model, example, step, first]` of each time that training met an example, the losses, and what was selected."""
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
    """Where each group (an example, or an example at a step) begins, and its values, one a shown token of it.

    A token that the rows lack keeps the value of `fill`.
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
    """Texts, each once, and the numbers that stand for them."""

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
    """16 bits: three digits hold, from 6e-8 to 65504 nats."""
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
    # Without a time: the same tables give the same page.
    return gzip.compress(len(text).to_bytes(4, "little") + text + b"".join(blocks), mtime=0)


FRAME = """<noscript><p class="dim">The token explorer needs JavaScript.</p></noscript>
<div id="explorer" class="explorer" hidden>
<div class="controls">
<span class="pick"><label>Example <select id="x-example"></select></label>
<button id="x-previous" aria-label="previous example">‹</button><button id="x-next" aria-label="next example">›</button>
</span>
<span class="by" role="group" aria-label="colour by"><button data-by="loss">loss</button><button
data-by="entropy">entropy</button><button data-by="bald">BALD</button><button
data-by="selected">selected at step</button><button data-by="difference">difference</button></span>
<span id="x-selected" hidden><label>by <select id="x-ablation"></select></label>
<label>at <select id="x-step"></select></label></span>
<span id="x-difference" hidden><label>loss under <select id="x-left"></select></label>
<label>less that under <select id="x-right"></select></label></span>
</div>
<p id="x-legend" class="legend" aria-live="polite"></p>
<div id="x-prompt" class="prompt"></div>
<div id="x-tokens" class="tokens" tabindex="0" aria-label="response tokens"></div>
<div id="x-tip" class="tip" role="tooltip" hidden></div>
</div>"""
