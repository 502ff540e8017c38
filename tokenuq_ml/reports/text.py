"""The result tables as text for the terminal, from `ablation_table.json` and `family_table.json`.

Imports only the standard library.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

WIDTH = 120
FIRST = ("true_kl", "loss")
"""Metrics whose columns come before all others."""
IFEVAL = ("prompt_level_strict_acc", "prompt_level_loose_acc", "inst_level_strict_acc", "inst_level_loose_acc")
"""IF-Eval's accuracies, which share a column, in this order."""
TOGETHER = "accuracy: prompt strict/loose, instruction strict/loose"
DISTINGUISHABLE = ("better", "worse", "higher", "lower")
"""Verdicts of differences that are distinguishable; the last two are for metrics without a direction."""


def report_text(folder: str | Path) -> str:
    """Return a report's table: families if one has several seeds or settings, else single models.

    Empty if there is no report.
    """
    families, models = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        for path in (Path(folder, "family_table.json"), Path(folder, "ablation_table.json"))
    )
    several = any(row["n_seeds"] > 1 for row in families) or Path(folder, "setting_table.json").is_file()
    return family_table_text(families) if several else ablation_table_text(models)


def ablation_table_text(rows: Sequence[dict]) -> str:
    """Return models as rows and metrics as columns, wrapped to a terminal of 120 columns.

    `rows` are those of `ablation_table.json`: model, dataset, split, metric, value, ci_low, ci_high, n,
    higher_is_better, separated, best. A star marks the best value if its interval overlaps no other; a metric whose
    intervals all overlap has the heading `indistinct`. The four accuracies of IF-Eval are one column, without
    intervals.
    """

    def cell(row: dict, count: str) -> str:
        if row["metric"] == TOGETHER:
            return f"{'/'.join(f'{value:.3f}' for value in row['values'])}{count}"
        return f"{'*' if row.get('best') else ' '}{_value(row)}{count}"

    return _layout(
        _together(rows),
        "model",
        cell,
        lambda of_metric: not next(iter(of_metric.values()))["separated"],
        "value [bootstrap interval over n examples]; * best, if its interval overlaps no other;\n"
        "indistinct: all intervals overlap, so the metric does not distinguish the models",
    )


def family_table_text(rows: Sequence[dict]) -> str:
    """Return families as rows and metrics as columns: the mean over seeds, and the difference to the baseline.

    `rows` are those of `family_table.json`. A difference has a verdict if its interval does not contain 0, else `~`. A
    metric without such a student has the heading `indistinct`.
    """

    spreads = any(row["spread"] is not None for row in rows)

    def cell(row: dict, count: str) -> str:
        spread = "" if row["spread"] is None else f" ±{row['spread']:.3f}"
        mean = f"{row['value']:.3f}{spread:<{7 if spreads else 0}}{count}"
        if row["difference"] is None:
            return f"{mean}  {'':>30}"
        difference = f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
        verdict = row["verdict"] if row["verdict"] in DISTINGUISHABLE else "~"
        return f"{mean}  {difference} {verdict:<6}"

    def indistinct(of_metric: Mapping[str, dict]) -> bool:
        students = [row for row in of_metric.values() if row["selection"] is not None]
        return not any(row["verdict"] in DISTINGUISHABLE for row in students)

    left_out = any(row["metric"] in IFEVAL[1:] for row in rows)
    named = [{**row, "line": _family_name(row)} for row in rows if row["metric"] not in IFEVAL[1:]]
    against = rows[0]["against"] if rows else ""
    return _layout(
        named,
        "line",
        cell,
        indistinct,
        f"mean ±standard deviation over seeds, then the difference to {against} [bootstrap interval over examples and "
        f"seeds];\n~ not distinguishable from {against}; indistinct: no family is distinguishable from it"
        + ("\nthe other three accuracies of instruction following are in the report" if left_out else ""),
    )


def _together(rows: Sequence[dict]) -> list[dict]:
    """Return the rows with one of all accuracies of IF-Eval per model and dataset, where the first of them was."""
    by_model: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if row["metric"] in IFEVAL:
            by_model.setdefault((row["model"], row["dataset"], row["split"]), {})[row["metric"]] = row
    found = []
    for row in rows:
        own = by_model.get((row["model"], row["dataset"], row["split"]), {})
        if row["metric"] not in IFEVAL or len(own) < len(IFEVAL):
            found.append(row)
        elif row is next(iter(own.values())):
            separated = any(one["separated"] for one in own.values())
            values = [own[name]["value"] for name in IFEVAL]
            found.append({**row, "metric": TOGETHER, "values": values, "separated": separated})
    return found


def _family_name(row: dict) -> str:
    about = filter(
        None, [row["selection"], row.get("setting"), f"{row['n_seeds']} seeds" if row["n_seeds"] > 1 else ""]
    )
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
    """Return one line per value of `key` and one column per metric, in bands; an empty text without rows."""
    names = list(dict.fromkeys(row[key] for row in rows))
    metrics: dict[tuple[str, str, str], dict[str, dict]] = {}
    for row in rows:
        metrics.setdefault((row["dataset"], row["split"], row["metric"]), {})[row[key]] = row
    ordered = sorted(metrics, key=lambda metric: FIRST.index(metric[2]) if metric[2] in FIRST else len(FIRST))
    columns = [_column(metric, metrics[metric], names, cell, indistinct(metrics[metric])) for metric in ordered]
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
    """Return four lines of heading and one line per name, all of the same width, right-aligned."""
    dataset, split, name = metric
    counts = {row["n"] for row in by_name.values()}
    any_row = next(iter(by_name.values()))
    count = f"n={counts.pop()}" if len(counts) == 1 else ""
    first, comma, second = name.partition(", ")
    direction = {True: "higher is better", False: "lower is better", None: ""}[any_row["higher_is_better"]]
    lines = [
        f"{dataset} ({split})",
        first + comma.rstrip(),
        second or direction,
        " ".join(filter(None, [count, "indistinct" if indistinct else ""])),
    ]
    for row in (by_name.get(name) for name in names):
        lines.append("-" if row is None else cell(row, "" if count else f" n={row['n']}"))
    width = max(map(len, lines))
    return [f"{line:>{width}}" for line in lines]
