"""What a comparison in a store found of each family of each study, as rows of `measured.OUTCOMES`."""

from pathlib import Path

import polars as pl

from tokenuq_ml.advice.measured import BASELINE, KNOBS, MARGINS, OUTCOMES
from tokenuq_ml.errors import InputError

CELLS_TABLE, FRONT_TABLE = "phase_cells", "front"
METRICS = ("true_kl", "loss")
"""What a front says of the divergence from the truth, or of the loss. Its benchmarks are not read."""


def outcomes_in(folder: Path) -> pl.DataFrame:
    """Return the outcomes that a comparison wrote to its folder.

    Args:
        folder: of a comparison of kind `phase_diagram` or `front`.

    Raises:
        InputError: it is of another kind, has another baseline than `mle`, or a study without out-of-distribution data.
    """
    for table, read in ((CELLS_TABLE, _of_cells), (FRONT_TABLE, _of_front)):
        if (folder / f"{table}.parquet").is_file():
            return _complete(read(pl.read_parquet(folder / f"{table}.parquet")).select(*OUTCOMES).cast(OUTCOMES))
    raise InputError(f"{folder}: is of no comparison that advice reads; name one of kind phase_diagram or front")


def _complete(outcomes: pl.DataFrame) -> pl.DataFrame:
    """Return the outcomes if all have their intervals."""
    for row in outcomes.filter(pl.any_horizontal(pl.exclude(*KNOBS, *MARGINS).is_null())).iter_rows(named=True):
        raise InputError(
            f"{row['family']} of study {row['study']} has no interval in or out of distribution; advice needs "
            "both: run the comparison again with more seeds or examples"
        )
    return outcomes


def _of_cells(table: pl.DataFrame) -> pl.DataFrame:
    ends = {
        f"{prefix}true_kl_change{end}": f"{prefix}change{end}"
        for prefix in ("", "ood_")
        for end in ("", "_low", "_high")
    }
    return table.rename(ends).with_columns(metric=pl.lit(METRICS[0])).filter(pl.col("family") != BASELINE)


def _of_front(table: pl.DataFrame) -> pl.DataFrame:
    """Return one row per study and family: of several OOD datasets, the one on which it loses most surely."""
    ends = {f"{prefix}{end}": f"{prefix}change_{end}" for prefix in ("", "ood_") for end in ("low", "high")}
    rows = table.filter(pl.col("metric").is_in(METRICS)).rename(ends)
    for study in sorted(table["study"].unique()):
        own = rows.filter(study=study, family=BASELINE)
        if not len(own):
            raise InputError(f"study {study}: has no plane with {BASELINE}; advice needs it, and an 'ood' dataset")
        if own.select((pl.col("change") != 0).any()).item():
            raise InputError(f"study {study}: is compared with another baseline than {BASELINE}, which advice needs")
    worst = rows.sort("ood_change_low", descending=True).unique(["study", "family"], keep="first", maintain_order=True)
    knobs = (pl.lit(None, pl.Float64).alias(name) for name in (*KNOBS, *MARGINS))
    return worst.filter(pl.col("family") != BASELINE).with_columns(*knobs)
