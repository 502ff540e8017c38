"""The same queries on ten million token rows in four ways. Imports no torch, so that the peak memory is the query's.

`python -m benchmarks.query_contestants STORE WAY QUESTION EXAMPLE` runs one query and prints the peak memory in MiB.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl

from benchmarks.process_memory import status_mib
from tokenuq_ml.tables.scanning import connect, scan

STUDY = "bench"
AGGREGATE, EXAMPLE = "filter and aggregate by category", "one example's tokens"
JOINED_AGGREGATE, JOINED_EXAMPLE = f"{AGGREGATE}, of tokens", f"{EXAMPLE}, of tokens"
_BY_CATEGORY = (
    "SELECT category, count(*) AS tokens, avg(loss) AS loss, avg({}) AS other FROM {} "
    "WHERE split = 'test' AND loss > 0.5 GROUP BY category"
)


def sql(home: Path, example: str) -> dict[str, Callable]:
    """Return the queries as SQL through `connect`. Only this way also has the queries of the joined view."""
    connection = connect(home)

    def ask(text: str) -> Callable:
        return lambda: connection.execute(text).fetchall()

    one = f"SELECT * FROM {{}} WHERE study = '{STUDY}' AND example_id = '{example}'"
    return {
        AGGREGATE: ask(_BY_CATEGORY.format("base_loss", "token_losses")),
        EXAMPLE: ask(one.format("token_losses")),
        JOINED_AGGREGATE: ask(_BY_CATEGORY.format("bald", "tokens")),
        JOINED_EXAMPLE: ask(one.format("tokens")),
    }


def through_scan(home: Path, example: str) -> dict[str, Callable]:
    """Return the queries in polars through `scan`."""
    return _by_polars(lambda: scan("token_losses", home), example)


def polars(home: Path, example: str) -> dict[str, Callable]:
    """Return the queries in polars on the file itself."""
    return _by_polars(lambda: pl.scan_parquet(file_of(home)), example)


def pandas(home: Path, example: str) -> dict[str, Callable]:
    """Return the queries in pandas, which reads only the columns that it needs."""
    import pandas as pd

    def categories() -> "pd.DataFrame":
        rows = pd.read_parquet(file_of(home), columns=["category", "split", "loss", "base_loss"])
        rows = rows[(rows["split"] == "test") & (rows["loss"] > 0.5)]
        return rows.groupby("category", observed=True)[["loss", "base_loss"]].agg(["size", "mean"])

    return {
        AGGREGATE: categories,
        EXAMPLE: lambda: pd.read_parquet(file_of(home), filters=[("example_id", "==", example)]),
    }


def _by_polars(rows: Callable[[], pl.LazyFrame], example: str) -> dict[str, Callable]:
    means = pl.col("loss", "base_loss").mean()
    test = pl.col("split") == "test", pl.col("loss") > 0.5
    return {
        AGGREGATE: lambda: rows().filter(*test).group_by("category").agg(pl.len(), means).collect(),
        EXAMPLE: lambda: rows().filter(pl.col("example_id") == example).collect(),
    }


def file_of(home: Path) -> Path:
    """Return the file that all queries read."""
    return home / f"token_losses/study={STUDY}/part-0.parquet"


WAYS = {"SQL": sql, "scan": through_scan, "polars": polars, "pandas": pandas}

if __name__ == "__main__":
    store, way, question, one_example = sys.argv[1:]
    WAYS[way](Path(store), one_example)[question]()
    print(status_mib("VmHWM"))
