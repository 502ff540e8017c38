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
        for row in models:
            others = [other for other in models if other is not row]
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
                    "separated": any(_apart(a, b) for a in models for b in models),
                    "best": bool(others) and all(_better(row, other) for other in others),
                }
            )
    return rows


def _apart(a: dict, b: dict) -> bool:
    return a["ci_low"] > b["ci_high"] or b["ci_low"] > a["ci_high"]


def _better(a: dict, b: dict) -> bool:
    if a["higher_is_better"] is None:
        return False
    return a["ci_low"] > b["ci_high"] if a["higher_is_better"] else a["ci_high"] < b["ci_low"]
