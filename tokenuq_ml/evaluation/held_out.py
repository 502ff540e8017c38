"""Loss, accuracy and calibration on held-out responses, and changes from the teacher: each example's part.

`metrics.py` sums the parts and computes the intervals.
"""

import numpy as np
import polars as pl

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import EXAMPLE_SCHEMA, example_rows
from tokenuq_ml.tables.schemas import TOKEN_KEY

CALIBRATION = "calibration_error"
_KEYS = ["dataset", "split", "example_id"]


def held_out_examples(tokens: pl.DataFrame, bins: int, teacher: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return each test and ood example's part of the metrics of its dataset and split, which are means over tokens.

    - `loss`: nats per token.
    - `token_accuracy`: share of tokens that are the model's first choice.
    - `calibration_error`: the expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3):
      `sum_b n_b / N |accuracy_b - confidence_b|` over `bins` equal bins of (0, 1] of the probability of the first
      choice, where `accuracy_b` is the share of the bin's first choices that are the token. An example's part is the
      sum of its tokens' `right - confidence`, each with the sign of its bin over all examples, so that the parts add
      up to the error exactly. Resamples keep these signs, since a bootstrap of absolute values would be biased
      upwards.
    - with `teacher`: `loss_change` and `entropy_change`, the model's minus the teacher's, in nats.

    Args:
        tokens: one row per response token, with `example_id, dataset, split, position, loss, entropy` (nats), `rank`
            (0 is the first choice) and `confidence` (its probability), in any order; other columns and splits
            are ignored.
        bins: number of bins of the calibration error.
        teacher: `example_id, position, loss, entropy` of at least these tokens.

    Returns:
        Columns EXAMPLE_SCHEMA, sorted by dataset, split, metric, and example; no rows if nothing is held out.

    Raises:
        InputError: the teacher has no row for a token.
    """
    figures = ["position", "loss", "entropy", "rank", "confidence"]
    held_out = tokens.select(pl.col(_KEYS).cast(pl.String), *figures).filter(pl.col("split").is_in(["test", "ood"]))
    if teacher is not None:
        held_out = _with_teacher(held_out, teacher)
    frames = [pl.DataFrame(schema=EXAMPLE_SCHEMA)]
    ordered = held_out.sort(*_KEYS, "position")
    for (dataset, split), group in ordered.partition_by("dataset", "split", maintain_order=True, as_dict=True).items():
        # numpy adds in row order; the last bits of a polars sum may depend on the number of threads.
        example, ids = group["example_id"].rle_id().to_numpy(), group["example_id"].unique(maintain_order=True)
        counts = np.bincount(example)
        column = {name: group[name].to_numpy().astype(np.float64) for name in group.columns[len(_KEYS) :]}
        right = (column["rank"] == 0).astype(np.float64)
        metrics = {
            "loss": column["loss"],
            "token_accuracy": right,
            CALIBRATION: _signed_gaps(right, column["confidence"], bins),
        }
        if teacher is not None:
            metrics |= {f"{name}_change": column[name] - column[f"{name}_teacher"] for name in ("loss", "entropy")}
        frames += [
            example_rows(dataset, split, metric, ids, np.bincount(example, weights=values), counts)
            for metric, values in sorted(metrics.items())
        ]
    return pl.concat(frames)


def _with_teacher(tokens: pl.DataFrame, teacher: pl.DataFrame) -> pl.DataFrame:
    """Add the columns `loss_teacher` and `entropy_teacher`."""
    theirs = teacher.select(*TOKEN_KEY, pl.col("loss", "entropy").name.suffix("_teacher"))
    both = tokens.join(theirs, on=TOKEN_KEY, how="left", validate="m:1")
    missing = both.filter(pl.col("loss_teacher").is_null())
    if len(missing):
        example, position = missing.select(*TOKEN_KEY).row(0)
        raise InputError(
            f"token_losses has no row for token {position} of {example}, which the model was evaluated on; materialise "
            "token_losses again"
        )
    return both


def _signed_gaps(right_N: np.ndarray, confidence_N: np.ndarray, bins: int) -> np.ndarray:
    """Return `right - confidence` of each token, with the sign of its bin's sum: the total is N times the error."""
    # Bins include their upper end; the first one includes 0 too.
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)
    gap_N = right_N - confidence_N
    return np.sign(np.bincount(bin_N, weights=gap_N, minlength=bins))[bin_N] * gap_N
