"""The share of rounding in a study's BALD, computed from its tables. Does not import torch.

The noise floor is the mean absolute difference between stored BALD and BALD in float64 with the same masks, over the
tokens of `bald_reference`, in nats per token.
"""

from pathlib import Path

import polars as pl

from tokenuq_ml.tables.fetching import fetch_partition
from tokenuq_ml.tables.schemas import table_dir

NOISE = (pl.col("bald").cast(pl.Float64) - pl.col("bald_float64")).abs()


def noise_floor(reference: pl.DataFrame) -> float:
    """Return the noise floor of a `bald_reference` table."""
    return float(reference.select(NOISE.mean()).item())


def bald_noise(home: str | Path, study: str) -> dict[str, float | int] | None:
    """Return `floor` and `mean_bald` in nats, and `tokens` of the reference; None if it was not measured."""
    for table in ("bald_reference", "token_uncertainty"):
        fetch_partition(Path(home), table, study=study)
    reference, uncertainty = (table_dir(home, table, study=study) for table in ("bald_reference", "token_uncertainty"))
    if not any(reference.glob("part-*.parquet")):
        return None
    rows = pl.read_parquet(reference / "part-*.parquet", hive_partitioning=False)
    mean = pl.scan_parquet(uncertainty / "part-*.parquet", hive_partitioning=False).select(pl.col("bald").mean())
    return {
        "floor": noise_floor(rows),
        "mean_bald": float(mean.collect(engine="streaming").item() or 0.0),
        "tokens": len(rows),
    }
