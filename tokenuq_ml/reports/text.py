"""The ablation table as text, for the terminal. Standard library only.

Lays out what `ablation_table.json` says; decides nothing of what can be told apart.
"""

from collections.abc import Sequence

WIDTH = 140


def ablation_table_text(rows: Sequence[dict]) -> str:
    """Models as lines, metrics as columns, in as many bands as a terminal of 140 columns needs.

    `rows` are those of `ablation_table.json`: model, dataset, split, metric, value, ci_low,
    ci_high, n, higher_is_better, separated, best. A star marks the best value where its interval
    overlaps no other's; a metric where all intervals overlap is headed `indistinct`.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        cells.setdefault((row["dataset"], row["split"], row["metric"]), {})[row["model"]] = row
    columns = [_column(metric, cells[metric], models) for metric in cells]
    names = ["", "", "", "", *models]
    left = max(map(len, names), default=0)
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
            for line, name in enumerate(names)
        )
        for band in bands
    ]
    if blocks:
        blocks.append(
            "value [bootstrap interval over n examples]; * best, where its interval overlaps no other's;\n"
            "indistinct: all intervals overlap, the metric cannot tell the models apart"
        )
    return "\n\n".join(blocks)


def _column(metric: tuple[str, str, str], by_model: dict[str, dict], models: Sequence[str]) -> list[str]:
    """Four lines of heading and one a model, all of one width, right-aligned."""
    dataset, split, name = metric
    counts = {row["n"] for row in by_model.values()}
    any_row = next(iter(by_model.values()))
    count = f"n={counts.pop()}" if len(counts) == 1 else ""
    lines = [
        f"{dataset} ({split})",
        name,
        f"{'higher' if any_row['higher_is_better'] else 'lower'} is better",
        " ".join(filter(None, [count, "" if any_row["separated"] else "indistinct"])),
        *(_cell(by_model.get(model), with_count=not count) for model in models),
    ]
    width = max(map(len, lines))
    return [f"{line:>{width}}" for line in lines]


def _cell(row: dict | None, with_count: bool) -> str:
    if row is None:
        return "-"
    star = "*" if row.get("best") else " "
    count = f" n={row['n']}" if with_count else ""
    return f"{star}{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]{count}"
