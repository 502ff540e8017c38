"""Loss, accuracy and calibration on held-out responses, and changes from the teacher: each example's part.

Where the distributions that generated the tokens are known, also the divergence from them, overall and by slot.

`metrics.py` sums the parts and computes the intervals.
"""

import numpy as np
import polars as pl

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.metrics import EXAMPLE_SCHEMA, example_rows
from tokenuq_ml.tables.schemas import TOKEN_KEY

CALIBRATION = "calibration_error"
DIVERGENCES = ("true_kl", "clean_kl")
"""Columns of `evaluation_tokens` that are metrics too."""
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
    - with the columns `true_kl, clean_kl, slot`: `true_kl`, the mean of `KL(truth || model)` over the tokens whose
      true distribution is known, in nats per token, and `true_kl_<slot>` over those of a slot; `clean_kl` likewise,
      from the distribution without label noise. No rows for data without a truth.

    Args:
        tokens: one row per response token, with `example_id, dataset, split, position, loss, entropy` (nats), `rank`
            (0 is the first choice) and `confidence` (its probability), in any order; other splits are ignored.
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
        if set(DIVERGENCES) <= set(tokens.columns):
            frames += _divergence_rows(dataset, split, tokens)
    return pl.concat(frames).sort("dataset", "split", "metric", "example_id")


def _divergence_rows(dataset: str, split: str, tokens: pl.DataFrame) -> list[pl.DataFrame]:
    """Return each example's part of the divergence from the truth, of all tokens and of those of each slot."""
    known = tokens.filter(
        (pl.col("dataset").cast(pl.String) == dataset)
        & (pl.col("split").cast(pl.String) == split)
        & pl.col(DIVERGENCES[0]).is_not_null()
    ).select(pl.col("example_id", "slot").cast(pl.String), "position", *DIVERGENCES)
    slots = known["slot"].unique().drop_nulls().sort()
    parts = {"": known} | {f"_{slot}": known.filter(slot=slot) for slot in slots}
    frames = []
    for suffix, part in parts.items():
        ordered = part.sort("example_id", "position")
        ids = ordered["example_id"].unique(maintain_order=True)
        example = ordered["example_id"].rle_id().to_numpy()
        counts = np.bincount(example)
        for name in DIVERGENCES:
            sums = np.bincount(example, weights=ordered[name].to_numpy())
            frames.append(example_rows(dataset, split, name + suffix, ids, sums, counts))
    return frames


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
