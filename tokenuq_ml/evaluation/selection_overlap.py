"""How far two selections take the same tokens: the Jaccard index at every optimiser step.

Reads `selections` tables of students that saw the same batches; does not know how the tokens were selected.
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
"""A set of models is the bits of one 64-bit number."""


def selection_overlap(selections: Mapping[str, pl.LazyFrame]) -> pl.DataFrame:
    """`|A ∩ B| / |A ∪ B|` of the selected (example_id, position) of every pair of ablations, step by step.

    Args:
        selections: ablation -> its `selections` table; at most MOST_MODELS, of one seed, so that a step is the
            same batch for all. Read lazily: only the selected tokens are held.

    Returns:
        `a, b` (in the given order, each pair once), `step`, `both`, `either` (tokens), `jaccard` (null where
        neither selects anything), by pair, then step; the steps are those at which any ablation selects a token.

    Raises:
        ValueError: more than MOST_MODELS ablations.
    """
    names = list(selections)
    if len(names) > MOST_MODELS:
        raise ValueError(f"{len(names)} ablations: the overlap of at most {MOST_MODELS} is counted at once")
    if len(names) < 2:
        return pl.DataFrame(schema=_SCHEMA)
    # One pass for all pairs: which ablations took a token, as a set of bits, and how often each set occurs in a step.
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
