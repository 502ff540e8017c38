"""The tables of results as text, for the terminal. Standard library only.

Lays out what `ablation_table.json` and `family_table.json` say; decides nothing of what can be told apart.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

WIDTH = 140
TOLD = ("better", "worse", "higher", "lower")
"""Verdicts that tell families apart; the last two of metrics without a direction."""


def report_text(folder: str | Path) -> str:
    """A report's table: families where any has several seeds, else the single models; empty where there is none."""
    families, models = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        for path in (Path(folder, "family_table.json"), Path(folder, "ablation_table.json"))
    )
    several = any(row["n_seeds"] > 1 for row in families)
    return family_table_text(families) if several else ablation_table_text(models)


def ablation_table_text(rows: Sequence[dict]) -> str:
    """Models as lines, metrics as columns, in as many bands as a terminal of 140 columns needs.

    `rows` are those of `ablation_table.json`: model, dataset, split, metric, value, ci_low,
    ci_high, n, higher_is_better, separated, best. A star marks the best value where its interval
    overlaps no other's; a metric where all intervals overlap is headed `indistinct`.
    """

    def cell(row: dict, count: str) -> str:
        return f"{'*' if row.get('best') else ' '}{_value(row)}{count}"

    return _layout(
        rows,
        "model",
        cell,
        lambda of_metric: not next(iter(of_metric.values()))["separated"],
        "value [bootstrap interval over n examples]; * best, where its interval overlaps no other's;\n"
        "indistinct: all intervals overlap, the metric cannot tell the models apart",
    )


def family_table_text(rows: Sequence[dict]) -> str:
    """Families as lines, metrics as columns: the mean over seeds, and the difference to the baseline.

    `rows` are those of `family_table.json`. A difference is followed by a verdict only where its
    interval does not hold 0, and by `~` elsewhere; a metric without such a student is headed `indistinct`.
    """

    spreads = any(row["spread"] is not None for row in rows)

    def cell(row: dict, count: str) -> str:
        spread = "" if row["spread"] is None else f" ±{row['spread']:.3f}"
        mean = f"{row['value']:.3f}{spread:<{7 if spreads else 0}}{count}"
        if row["difference"] is None:
            return f"{mean}  {'':>30}"
        difference = f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
        told = row["verdict"] if row["verdict"] in TOLD else "~"
        return f"{mean}  {difference} {told:<6}"

    def indistinct(of_metric: Mapping[str, dict]) -> bool:
        students = [row for row in of_metric.values() if row["selection"] is not None]
        return not any(row["verdict"] in TOLD for row in students)

    named = [{**row, "line": _family_name(row)} for row in rows]
    against = rows[0]["against"] if rows else ""
    return _layout(
        named,
        "line",
        cell,
        indistinct,
        f"mean ±standard deviation over seeds, then the difference to {against} [bootstrap interval over examples and "
        f"seeds];\n~ not distinguishable from {against}; indistinct: no family is distinguishable from it",
    )


def _family_name(row: dict) -> str:
    about = filter(None, [row["selection"], f"{row['n_seeds']} seeds" if row["n_seeds"] > 1 else ""])
    return f"{row['family']} ({', '.join(about)})" if row["selection"] else row["family"]


def _value(row: dict) -> str:
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def _layout(
    rows: Sequence[dict],
    key: str,
    cell: Callable[[dict, str], str],
    indistinct: Callable[[Mapping[str, dict]], bool],
    legend: str,
) -> str:
    """One line for each value of `key`, one column a metric, in bands; nothing where there are no rows."""
    names = list(dict.fromkeys(row[key] for row in rows))
    metrics: dict[tuple[str, str, str], dict[str, dict]] = {}
    for row in rows:
        metrics.setdefault((row["dataset"], row["split"], row["metric"]), {})[row[key]] = row
    columns = [_column(metric, metrics[metric], names, cell, indistinct(metrics[metric])) for metric in metrics]
    lines = ["", "", "", "", *names]
    left = max(map(len, lines), default=0)
    bands: list[list[list[str]]] = []
    used = WIDTH + 1
    for column in columns:
        width = len(column[0]) + 2
        if used + width > WIDTH:
            bands.append([])
            used = left
        bands[-1].append(column)
        used += width
    blocks = [
        "\n".join(
            "  ".join([f"{name:<{left}}", *(column[line] for column in band)]).rstrip()
            for line, name in enumerate(lines)
        )
        for band in bands
    ]
    return "\n\n".join([*blocks, legend] if blocks else [])


def _column(
    metric: tuple[str, str, str],
    by_name: Mapping[str, dict],
    names: Sequence[str],
    cell: Callable[[dict, str], str],
    indistinct: bool,
) -> list[str]:
    """Four lines of heading and one a name, all of one width, right-aligned."""
    dataset, split, name = metric
    counts = {row["n"] for row in by_name.values()}
    any_row = next(iter(by_name.values()))
    count = f"n={counts.pop()}" if len(counts) == 1 else ""
    lines = [
        f"{dataset} ({split})",
        name,
        {True: "higher is better", False: "lower is better", None: ""}[any_row["higher_is_better"]],
        " ".join(filter(None, [count, "indistinct" if indistinct else ""])),
    ]
    for row in (by_name.get(name) for name in names):
        lines.append("-" if row is None else cell(row, "" if count else f" n={row['n']}"))
    width = max(map(len, lines))
    return [f"{line:>{width}}" for line in lines]
