"""Losses of validation examples, by which settings of a training are compared. Never a test or ood example."""

import numpy as np
import polars as pl

from tokenuq_ml.errors import InputError

VALIDATION = "validation"


def validation_losses(tokens: pl.DataFrame) -> pl.DataFrame:
    """Return the loss of each validation example: the columns of the table `validation_losses`.

    Args:
        tokens: one row per response token, with `example_id, split, position, loss` (nats); other columns and splits
            are ignored.

    Raises:
        InputError: there is no validation example.
    """
    rows = tokens.select(pl.col("example_id", "split").cast(pl.String), "position", "loss")
    rows = rows.filter(split=VALIDATION).sort("example_id", "position")
    if rows.is_empty():
        raise InputError(
            "the validation split has no response token, so settings of a training cannot be compared; give the "
            "dataset's `sizes` a validation split, or remove `sweep` and `teacher_sweep` from the study"
        )
    # numpy adds in row order; the last bits of a polars sum may depend on the number of threads.
    example = rows["example_id"].rle_id().to_numpy()
    return pl.DataFrame(
        {
            "example_id": rows["example_id"].unique(maintain_order=True),
            "loss": np.bincount(example, weights=rows["loss"].to_numpy().astype(np.float64)),
            "tokens": pl.Series(np.bincount(example), dtype=pl.Int32),
        }
    )


def mean_loss(losses: pl.DataFrame) -> float:
    """Return the mean loss per response token of a table `validation_losses`, nats."""
    ordered = losses.sort("example_id")
    return float(ordered["loss"].to_numpy().sum() / ordered["tokens"].to_numpy().sum())
