"""Volumes that grow with the data: rows and footers of tables, shards, examples in memory, Dagster's events.

Constants were measured with torch 2.13.0, pyarrow and polars 2.1.0 on one core of the machine of
docs/results/benchmarks.md, with ten row groups of random numbers, and with Dagster's records of the `quickstart` study.
"""

import math
from dataclasses import dataclass

from tokenuq_ml.costs.table_bytes import TABLE_BYTES
from tokenuq_ml.tables.kept_parts import MOST_BYTES, interval
from tokenuq_ml.tables.parquet import ROW_GROUP_ROWS
from tokenuq_ml.tables.schemas import TABLES

SHARD_BATCHES = 32
"""Batches of a shard of scoring, of `stages/losses_and_states.py`, which imports torch; a test compares them."""
ROWS_PER_SECOND = {"token_losses": 1.5e6, "token_uncertainty": 4.0e6, "selections": 4.0e6}
"""Rows that one process hashes, compresses and writes, per second of processor time; of other tables nothing was
measured, and `DEFAULT_ROWS_PER_SECOND` is assumed."""
DEFAULT_ROWS_PER_SECOND = 1.5e6
KEPT_ROWS_PER_SECOND = {"token_losses": 4.5e6, "token_uncertainty": 9.8e6}
"""Rows of finished parts that one process writes and hashes, besides those of the table (`tables/kept_parts.py`)."""
KEPT_ROW_BYTES = {"token_losses": 74, "token_uncertainty": 46}
"""Bytes of memory per row that is not kept yet."""
TOKENS_PER_SECOND = 0.4e6
"""Tokens that one process renders, encodes and writes: 11,133 tokens of GSM-Symbolic in 0.024 s."""
CHECKPOINT_ROWS_PER_SECOND = 12e6
"""Rows of `selections` that `StepRecorder.save` writes; each checkpoint has all rows so far."""
CHECKPOINT_BYTES_PER_ROW = 3.9
SELECTION_BYTES = 37
"""Bytes of memory per row of `selections`, until training ends."""
EXAMPLE_BYTES, TOKEN_BYTES = 430, 5
"""Bytes of memory per example, and per token of it, of training, which holds all examples."""
FOOTER_BYTES = 130
"""Bytes of a Parquet file's footer per column of a row group. Every reader reads the footer first."""
POLARS_ROWS = 2**32
"""Rows that polars counts, without its extra `rt64`."""
EVENTS_PER_ASSET, EVENT_BYTES_PER_ASSET = 13, 133_000
"""Records of Dagster per materialised asset, checks included: 265 events and 2.8 MB for 21 assets. Most bytes are
pictures and tables in metadata, whose number does not grow with the data."""
MESSAGE_INTERVAL_S, MESSAGE_BYTES = 5.0, 360
"""Seconds between a stage's progress messages, each an event (`CheckpointCallback.MESSAGE_INTERVAL_S`)."""


@dataclass(frozen=True)
class TableVolume:
    """A table of a plan."""

    name: str
    rows: int
    size: int
    """Bytes on disk."""
    row_groups: int
    footer: int
    """Bytes of the footer."""


def table_volume(name: str, size: float) -> TableVolume:
    """Return the volume of a table by its bytes on disk."""
    rows = rows_of(name, size)
    groups = math.ceil(rows / ROW_GROUP_ROWS)
    return TableVolume(name, rows, round(size), groups, groups * len(TABLES[name].columns) * FOOTER_BYTES)


def rows_of(name: str, size: float) -> int:
    """Return the rows of a table, one per response token, by its bytes on disk."""
    return round(size / TABLE_BYTES[name])


def writing_seconds(name: str, size: float) -> float:
    """Return the seconds that the process takes that writes a table."""
    return rows_of(name, size) / ROWS_PER_SECOND.get(name, DEFAULT_ROWS_PER_SECOND)


def keeping_seconds(name: str, size: float) -> float:
    """Return the seconds that the process takes that keeps the finished parts of a table, in all; 0 of other tables."""
    return rows_of(name, size) / KEPT_ROWS_PER_SECOND[name] if name in KEPT_ROWS_PER_SECOND else 0.0


def kept_every(name: str, size: float, seconds: float) -> float:
    """Return the longest time between two parts of a table that is measured in `seconds`."""
    memory = rows_of(name, size) * KEPT_ROW_BYTES[name]
    return min(interval(seconds), MOST_BYTES / memory * seconds)


def shard_tokens(batch_tokens: int) -> int:
    """Return the response tokens of a shard of scoring."""
    return min(ROW_GROUP_ROWS, SHARD_BATCHES * batch_tokens)


def examples_memory(examples: float, tokens: float) -> float:
    """Return the bytes that a training's process holds of its data."""
    return EXAMPLE_BYTES * examples + TOKEN_BYTES * tokens


def dagster_events(assets: int, seconds: float) -> tuple[int, int]:
    """Return the events of a study and their bytes: of its assets, and of the progress messages of its stages."""
    messages = seconds / MESSAGE_INTERVAL_S
    return (
        round(EVENTS_PER_ASSET * assets + messages),
        round(EVENT_BYTES_PER_ASSET * assets + MESSAGE_BYTES * messages),
    )
