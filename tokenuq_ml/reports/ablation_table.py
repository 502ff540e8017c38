"""The ablation table: every model on every metric, and which models their intervals distinguish.

Plain rows for the page, the terminal and the CSV.
"""

import polars as pl

METRIC_ORDER = ("loss", "token_accuracy")


def table_rows(evaluations: dict[str, pl.DataFrame]) -> list[dict]:
    """Return the rows, sorted by dataset, metric, and model in the given order.

    `separated`: the metric has two models whose intervals do not overlap. `best`: the model's interval overlaps no
    other and is on the better side of all of them.
    """
    frames = [
        frame.with_columns(model=pl.lit(name), order=pl.lit(order))
        for order, (name, frame) in enumerate(evaluations.items())
    ]
    everything = pl.concat(frames).with_columns(
        place=pl.col("split").replace_strict({"test": 0}, default=1),
        rank=pl.col("metric").replace_strict({m: i for i, m in enumerate(METRIC_ORDER)}, default=len(METRIC_ORDER)),
    )
    rows = []
    grouped = everything.sort("place", "dataset", "rank", "metric", "order").group_by(
        "dataset", "split", "metric", maintain_order=True
    )
    for _, group in grouped:
        models = group.to_dicts()
        # In sorted order, so that the time does not grow with the square of the number of models.
        lows, highs = sorted(row["ci_low"] for row in models), sorted(row["ci_high"] for row in models)
        for row in models:
            rows.append(
                {
                    **{
                        key: row[key]
                        for key in (
                            "model",
                            "family",
                            "seed",
                            "dataset",
                            "split",
                            "metric",
                            "value",
                            "ci_low",
                            "ci_high",
                            "n",
                            "higher_is_better",
                        )
                    },
                    "separated": lows[-1] > highs[0],
                    "best": len(models) > 1 and _is_best(row, lows, highs),
                }
            )
    return rows


def _is_best(row: dict, lows: list[float], highs: list[float]) -> bool:
    """Return whether the interval of a row is better than all others, whose sorted ends are given with its own."""
    if row["higher_is_better"] is None:
        return False
    if row["higher_is_better"]:
        return row["ci_low"] > (highs[-2] if row["ci_high"] == highs[-1] else highs[-1])
    return row["ci_high"] < (lows[1] if row["ci_low"] == lows[0] else lows[0])
