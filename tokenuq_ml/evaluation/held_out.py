"""Loss, accuracy and calibration on held-out responses, and how they moved from the teacher's: each example's part.

Does not know which model scored the tokens, never loads one, and makes no interval (`metrics.py`).
"""

import numpy as np
import polars as pl

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import EXAMPLE_SCHEMA, example_rows
from tokenuq_ml.tables.schemas import TOKEN_KEY

CALIBRATION = "calibration_error"
_KEYS = ["dataset", "split", "example_id"]


def held_out_examples(tokens: pl.DataFrame, bins: int, teacher: pl.DataFrame | None = None) -> pl.DataFrame:
    """What each test and ood example adds to the metrics of its dataset and split, all of them over tokens.

    - `loss`: nats a token.
    - `token_accuracy`: tokens that are the model's first choice.
    - `calibration_error`: the expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3):
      `sum_b n_b / N |accuracy_b - confidence_b|` over `bins` equal bins of (0, 1] of the probability of the first
      choice, where `accuracy_b` is the share of the bin's first choices that are the token. An example's part is its
      tokens' `right - confidence`, each with the sign that its bin has over all examples, so that the parts add
      up to the error exactly. Intervals made of the parts hold these signs, as a bootstrap of absolute values
      would be off upwards.
    - with `teacher`: `loss_change` and `entropy_change`, the model's less the teacher's, in nats.

    Args:
        tokens: one row a response token, with `example_id, dataset, split, position, loss, entropy` (nats), `rank`
            (0 is the first choice) and `confidence` (its probability), in any order; other columns and splits
            are ignored.
        teacher: `example_id, position, loss, entropy` of at least these tokens.

    Returns:
        Columns EXAMPLE_SCHEMA, by dataset, then split, then metric, then example; no rows where nothing is held out.

    Raises:
        InputError: the teacher has no row of a token.
    """
    figures = ["position", "loss", "entropy", "rank", "confidence"]
    held_out = tokens.select(pl.col(_KEYS).cast(pl.String), *figures).filter(pl.col("split").is_in(["test", "ood"]))
    if teacher is not None:
        held_out = _beside(held_out, teacher)
    frames = [pl.DataFrame(schema=EXAMPLE_SCHEMA)]
    ordered = held_out.sort(*_KEYS, "position")
    for (dataset, split), group in ordered.partition_by("dataset", "split", maintain_order=True, as_dict=True).items():
        # numpy adds in row order: a polars sum may depend on the number of threads in its last bits.
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


def _beside(tokens: pl.DataFrame, teacher: pl.DataFrame) -> pl.DataFrame:
    """The tokens with the columns `loss_teacher` and `entropy_teacher`."""
    theirs = teacher.select(*TOKEN_KEY, pl.col("loss", "entropy").name.suffix("_teacher"))
    both = tokens.join(theirs, on=TOKEN_KEY, how="left", validate="m:1")
    lone = both.filter(pl.col("loss_teacher").is_null())
    if len(lone):
        example, position = lone.select(*TOKEN_KEY).row(0)
        raise InputError(
            f"token_losses has no row of token {position} of {example}, which the model was evaluated on: materialise "
            "token_losses again"
        )
    return both


def _signed_gaps(right_N: np.ndarray, confidence_N: np.ndarray, bins: int) -> np.ndarray:
    """`right - confidence` of each token, with the sign of its bin's sum: they add up to N times the error."""
    # The bins are open below and closed above; the first is closed at 0 too.
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)
    gap_N = right_N - confidence_N
    return np.sign(np.bincount(bin_N, weights=gap_N, minlength=bins))[bin_N] * gap_N
