"""Overlap of two selections: the Jaccard index of their tokens at every optimiser step.

Reads `selections` tables of students that saw the same batches.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import polars as pl

from tokenuq_ml.tables.schemas import TOKEN_KEY

_SCHEMA = {
    "a": pl.String,
    "b": pl.String,
    "step": pl.Int32,
    "both": pl.Int64,
    "either": pl.Int64,
    "jaccard": pl.Float64,
}
MOST_MODELS = 64
"""A set of models is stored as the bits of one 64-bit number."""


def selection_overlap(selections: Mapping[str, pl.LazyFrame]) -> pl.DataFrame:
    """Return `|A ∩ B| / |A ∪ B|` of the selected (example_id, position) of every pair of ablations at each step.

    Args:
        selections: ablation -> its `selections` table; at most MOST_MODELS, all of one seed, so that a step has the
            same batch in each. Read lazily: only selected tokens are in memory.

    Returns:
        `a, b` (in the given order, each pair once), `step`, `both`, `either` (tokens), `jaccard` (null if neither
        selects a token), sorted by pair and step. Steps at which no ablation selects a token are left out.

    Raises:
        ValueError: more than MOST_MODELS ablations.
    """
    names = list(selections)
    if len(names) > MOST_MODELS:
        raise ValueError(f"{len(names)} ablations: at most {MOST_MODELS} can be compared")
    if len(names) < 2:
        return pl.DataFrame(schema=_SCHEMA)
    # One pass for all pairs: the set of ablations that selected a token as bits, and the count of each set per step.
    chosen = pl.concat(
        frame.filter("selected").select("step", *TOKEN_KEY, takers=pl.lit(1 << index, pl.UInt64))
        for index, frame in enumerate(selections.values())
    )
    sets = (
        chosen.group_by("step", *TOKEN_KEY)
        .agg(pl.col("takers").sum())
        .group_by("step", "takers")
        .agg(tokens=pl.len().cast(pl.Int64))
        .sort("step", "takers")
        .collect(engine="streaming")
    )
    steps, step_index = np.unique(sets["step"].to_numpy(), return_inverse=True)
    bits = np.arange(len(names), dtype=np.uint64)
    taken = (sets["takers"].to_numpy()[:, None] >> bits & np.uint64(1)).astype(bool)
    tokens = sets["tokens"].to_numpy()
    frames = []
    for i, j in combinations(range(len(names)), 2):
        both, either = (
            np.bincount(step_index, weights=tokens * of_pair, minlength=len(steps)).astype(np.int64)
            for of_pair in (taken[:, i] & taken[:, j], taken[:, i] | taken[:, j])
        )
        frames.append(
            pl.DataFrame({"step": steps, "both": both, "either": either}).select(
                pl.lit(names[i]).alias("a"), pl.lit(names[j]).alias("b"), "step", "both", "either"
            )
        )
    jaccard = pl.when(pl.col("either") > 0).then(pl.col("both") / pl.col("either"))
    return pl.concat(frames).with_columns(jaccard=jaccard).cast(_SCHEMA)
