"""Loss and next-token accuracy on held-out responses: what each example adds to them.

Does not know which model scored the tokens, never loads one, and makes no interval (`metrics.py`).
"""

import numpy as np
import polars as pl

from tokenuq_ml.evaluation.metrics import EXAMPLE_SCHEMA, example_rows


def held_out_examples(tokens: pl.DataFrame) -> pl.DataFrame:
    """`loss` (nats over tokens) and `token_accuracy` (tokens of rank 0 over tokens) of the test and ood examples.

    Args:
        tokens: one row a response token, with `example_id, dataset, split, loss` (nats), `rank` (0 is the
            model's first choice), in any order; other columns and splits are ignored.

    Returns:
        Columns EXAMPLE_SCHEMA, by dataset, then split, then metric, then example; no rows where nothing is held out.
    """
    columns = ["dataset", "split", "example_id", "loss", "rank"]
    held_out = tokens.select(pl.col(columns[:3]).cast(pl.String), *columns[3:])
    held_out = held_out.filter(pl.col("split").is_in(["test", "ood"])).sort(columns)
    frames = [pl.DataFrame(schema=EXAMPLE_SCHEMA)]
    for (dataset, split), group in held_out.partition_by("dataset", "split", maintain_order=True, as_dict=True).items():
        # numpy adds in row order: a polars sum may depend on the number of threads in its last bits.
        example, ids = group["example_id"].rle_id().to_numpy(), group["example_id"].unique(maintain_order=True)
        counts = np.bincount(example)
        losses = np.bincount(example, weights=group["loss"].to_numpy())
        hits = np.bincount(example, weights=(group["rank"] == 0).to_numpy())
        frames.append(example_rows(dataset, split, "loss", ids, losses, counts))
        frames.append(example_rows(dataset, split, "token_accuracy", ids, hits, counts))
    return pl.concat(frames)
