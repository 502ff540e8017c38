"""The ablation table as text, for the terminal. Standard library only."""

from collections.abc import Sequence


def ablation_table_text(rows: Sequence[dict]) -> str:
    """One block a metric, one line a model: value, interval, n.

    `rows` are those of `ablation_table.json`: model, dataset, split, metric, value, ci_low,
    ci_high, n, higher_is_better, separated.
    """
    width = max((len(row["model"]) for row in rows), default=0)
    lines: list[str] = []
    previous = None
    for row in rows:
        metric = (row["dataset"], row["split"], row["metric"])
        if metric != previous:
            direction = "higher is better" if row["higher_is_better"] else "lower is better"
            note = "" if row["separated"] else "; intervals overlap: not distinguishable"
            lines += ([""] if previous else []) + [
                f"{row['dataset']} ({row['split']}) {row['metric']}  [{direction}{note}]"
            ]
            previous = metric
        best = " *" if row.get("best") else ""
        lines.append(
            f"    {row['model']:<{width}}  {row['value']:8.4f}  [{row['ci_low']:.4f}, {row['ci_high']:.4f}]"
            f"  n={row['n']}{best}"
        )
    return "\n".join(lines)
