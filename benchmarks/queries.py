"""Queries on ten million token rows: `connect` (SQL) and `scan` (polars), plain polars and pandas on the same file.

Queries take turns, with files in the operating system's cache. Peak memory is measured in one process per query. The
rows are those of some texts scored by the model, repeated under other example ids. Each copy's numbers differ by up to
one percent, because Parquet would store equal numbers only once.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import Row, alternate, fresh_model, mixed_examples, model_folder
from benchmarks.query_contestants import (
    AGGREGATE,
    EXAMPLE,
    JOINED_AGGREGATE,
    JOINED_EXAMPLE,
    STUDY,
    WAYS,
    file_of,
)
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.models.adapters import freeze_adapter
from tokenuq_ml.models.load import load_tokenizer
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.stages.loss_tables import with_categories
from tokenuq_ml.tables.parquet import TableWriter
from tokenuq_ml.tables.schemas import TOKEN_KEY, table_dir

ROWS, TEXTS, COPIES_AT_ONCE = 10_000_000, 40, 16
SPLITS = ("train", "validation", "test", "ood")
SECONDS = {AGGREGATE: 1.0, EXAMPLE: 0.1, JOINED_AGGREGATE: 1.0, JOINED_EXAMPLE: 0.1}
MIB = 1024


def real_rows() -> dict[str, pl.DataFrame]:
    """Return the rows of `token_losses` and `token_uncertainty` for some texts."""
    model, numerics = fresh_model()
    model, examples = freeze_adapter(model), mixed_examples(TEXTS)
    splits = {example.example_id: SPLITS[number % 4] for number, example in enumerate(examples)}
    losses = score_examples(model, examples, numerics).with_columns(
        split=pl.col("example_id").replace_strict(splits), base_loss="loss", base_entropy="entropy"
    )
    return {
        "token_losses": with_categories(losses, load_tokenizer(model_folder())),
        "token_uncertainty": token_uncertainty(model, examples, UncertaintySpec(samples=2), numerics),
    }


def copies(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield copies of `rows`, some at a time, until there are `ROWS` rows in total."""
    numbers = [name for name, dtype in rows.schema.items() if dtype.is_float()]
    for first in range(0, -(-ROWS // len(rows)), COPIES_AT_ONCE):
        parts = []
        for copy in range(first, first + COPIES_AT_ONCE):
            moved = pl.Series(np.random.default_rng(copy).uniform(0.99, 1.01, len(rows)).astype("f4"))
            name = pl.format("{}/{}", pl.lit(f"{copy:05d}"), "example_id").alias("example_id")
            parts.append(rows.with_columns(name, *(pl.col(column) * moved for column in numbers)))
        yield pl.concat(parts).head(ROWS - first * len(rows))


def make_store(home: Path) -> str:
    """Write both tables of one study; return the id of an example in the middle."""
    for table, rows in real_rows().items():
        folder = table_dir(home, table, study=STUDY)
        with TableWriter(table, folder, spec_hash="b", code_version="b") as writer:
            for part in copies(rows.sort(*TOKEN_KEY)):
                writer.append(part)
        print(
            f"  {table}: {len(rows):,} rows repeated to {ROWS:,}, {writer.path.stat().st_size / 1e6:.0f} MB", flush=True
        )
    return pl.scan_parquet(file_of(home)).select("example_id").slice(ROWS // 2, 1).collect().item()


def run(repeats: int) -> list[Row]:
    """Return rows for the times of the queries, alone and joined, and for their peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        example = make_store(home)
        ways = {way: ask(home, example) for way, ask in WAYS.items()}
        rows = []
        for question, pairs in (
            (AGGREGATE, [(ours, rival) for ours in ("SQL", "scan") for rival in ("polars", "pandas")]),
            (EXAMPLE, [(ours, rival) for ours in ("SQL", "scan") for rival in ("polars", "pandas")]),
        ):
            seconds = alternate({way: _silent(asked[question]) for way, asked in ways.items()}, repeats)
            rows += [_time(f"{question}: {a} / plain {b}", seconds[a], seconds[b], question) for a, b in pairs]
        for question, alone in ((JOINED_AGGREGATE, AGGREGATE), (JOINED_EXAMPLE, EXAMPLE)):
            seconds = alternate({name: _silent(ways["SQL"][name]) for name in (question, alone)}, repeats)
            measure = f"{question}: SQL / token_losses alone"
            rows.append(_time(measure, seconds[question], seconds[alone], question))
        pandas = peak_mib(home, "pandas", AGGREGATE, example)
        for way, question in (("SQL", AGGREGATE), ("scan", AGGREGATE), ("SQL", JOINED_AGGREGATE)):
            mib = peak_mib(home, way, question, example)
            measure = f"peak memory, {question}: {way} / plain pandas without the join"
            rows.append(
                Row(measure, f"{mib:,.0f} MiB", f"{pandas:,.0f} MiB", mib / pandas, f"ours <= {MIB:,} MiB", mib <= MIB)
            )
        return rows


def peak_mib(home: Path, way: str, question: str, example: str) -> float:
    """Return the peak memory of a process that runs one query, imports included."""
    command = [sys.executable, "-m", "benchmarks.query_contestants", str(home), way, question, example]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _time(measure: str, ours: float, rival: float, question: str) -> Row:
    target = SECONDS[question]
    measure = f"10 million rows, {measure}"
    return Row(measure, f"{ours:.3f} s", f"{rival:.3f} s", ours / rival, f"ours <= {target:g} s", ours <= target)


def _silent(ask: Callable) -> Callable[[], None]:
    """Return the query without its result, because `alternate` takes a returned value for seconds."""

    def run() -> None:
        ask()

    return run
