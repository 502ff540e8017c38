"""The ablation table: every model on every metric, and which differences the intervals can tell apart.

Plain rows for the page, the terminal and the CSV; computes no metric.
"""

import polars as pl

REFERENCES = ("base", "teacher")
METRIC_ORDER = ("loss", "token_accuracy")


def table_rows(evaluations: dict[str, pl.DataFrame]) -> list[dict]:
    """Rows by dataset and metric, then model in the given order.

    `separated` holds for a metric where any two models' intervals do not overlap; `best` for
    a model whose interval overlaps no other's and lies on the better side.
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
    return a["ci_low"] > b["ci_high"] if a["higher_is_better"] else a["ci_high"] < b["ci_low"]


def verdict(rows: list[dict]) -> str:
    """What the table can and cannot say, in words."""
    metrics = dict.fromkeys((row["dataset"], row["split"], row["metric"]) for row in rows)
    telling = []
    for metric in metrics:
        models = [row for row in rows if (row["dataset"], row["split"], row["metric"]) == metric]
        students = [row for row in models if row["model"] not in REFERENCES]
        pairs = [
            f"{a['model']} and {b['model']}" for i, a in enumerate(students) for b in students[i + 1 :] if _apart(a, b)
        ]
        if pairs:
            telling.append(f"{metric[0]} {metric[2]} ({'; '.join(pairs)})")
    if telling:
        return (
            "Intervals of students do not overlap on: " + "; ".join(telling) + ". Wherever they overlap, the table "
            "cannot tell the arms apart."
        )
    return (
        "On every metric the students' intervals overlap: this study demonstrates the pipeline and cannot separate "
        "the arms. More examples or more seeds narrow the intervals."
    )
