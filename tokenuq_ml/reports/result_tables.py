"""The ablation table and the family table as HTML fragments: models as rows, metrics as columns."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from tokenuq_ml.config import REFERENCE_ROWS
from tokenuq_ml.reports import html

Metric = tuple[str, str, str]


def ablation_table(rows: Sequence[dict]) -> str:
    """Return one row per model, one column per metric; the best is marked only if its interval overlaps no other."""
    metrics = _by_metric(rows, "model")
    heads = {metric: [_heading(of_metric) + _note(of_metric)] for metric, of_metric in metrics.items()}
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = [_cell("model", _breakable(model))]
        for of_metric in metrics.values():
            row = of_metric.get(model)
            cells.append(
                _cell("value") if row is None else _cell("value best" if row["best"] else "value", _value(row))
            )
        lines.append((model, cells))
    return _table(["model"], heads, lines)


def family_table(rows: Sequence[dict]) -> str:
    """Return one row per family, two columns per metric: the mean over seeds, and the difference to the baseline.

    A difference is coloured only if its interval does not contain 0; otherwise the cell says "not distinguishable".
    """
    metrics = _by_metric(rows, "family")
    heads = {
        metric: [_heading(of_metric), f"difference<br>to {_breakable(next(iter(of_metric.values()))['against'])}"]
        for metric, of_metric in metrics.items()
    }
    lines = []
    for family, about in {row["family"]: row for row in rows}.items():
        cells = [
            _cell("model", _family(about)),
            _cell("about", escape(about["selection"] or "—")),
            _cell("about", str(about["n_seeds"])),
        ]
        for of_metric in metrics.values():
            row = of_metric.get(family)
            cells += [_cell("value"), _cell("")] if row is None else [_cell("value", _value(row)), _difference(row)]
        lines.append((family, cells))
    return _table(["family", "selection", "seeds"], heads, lines)


def _by_metric(rows: Sequence[dict], key: str) -> dict[Metric, dict[str, dict]]:
    metrics: dict[Metric, dict[str, dict]] = {}
    for row in rows:
        metrics.setdefault((row["dataset"], row["split"], row["metric"]), {})[row[key]] = row
    return metrics


def _table(
    names: Sequence[str], heads: Mapping[Metric, Sequence[str]], lines: Sequence[tuple[str, Sequence[str]]]
) -> str:
    groups: Counter = Counter()
    for metric, columns in heads.items():
        groups[metric[:2]] += len(columns)
    # What describes a family (class "about") makes room for its numbers on a narrow screen.
    about_groups = '<td class="about"></td>' * (len(names) - 1)
    groups_of_metrics = "".join(
        f'<th class="group" scope="colgroup" colspan="{count}">{escape(dataset)} <small>{escape(split)}</small></th>'
        for (dataset, split), count in groups.items()
    )
    upper = f"<td></td>{about_groups}{groups_of_metrics}"
    first, *about = (escape(name) for name in names)
    lower = f'<th scope="col">{first}</th>' + "".join(f'<th class="about" scope="col">{name}</th>' for name in about)
    lower += "".join(f'<th scope="col">{column}</th>' for columns in heads.values() for column in columns)
    body = "".join(
        f"<tr{' class=reference' if name in REFERENCE_ROWS else ''}>{''.join(cells)}</tr>" for name, cells in lines
    )
    head = f"<thead><tr>{upper}</tr><tr>{lower}</tr></thead>"
    return html.scrolled(f'<table class="ablations">{head}<tbody>{body}</tbody></table>', "tall")


def _family(row: dict) -> str:
    setting = row.get("setting")
    return _breakable(row["family"]) + (f"<br><small>{escape(setting)}</small>" if setting else "")


def _heading(of_metric: Mapping[str, dict]) -> str:
    row = next(iter(of_metric.values()))
    arrow = {True: "&nbsp;↑", False: "&nbsp;↓", None: ""}[row["higher_is_better"]]
    return f"{_breakable(row['metric'])}{arrow}<br><small>n={row['n']}</small>"


def _note(of_metric: Mapping[str, dict]) -> str:
    return "" if next(iter(of_metric.values()))["separated"] else "<br><small>not distinguishable</small>"


def _value(row: dict) -> str:
    spread = "" if row.get("spread") is None else f" ± {row['spread']:.3f}"
    return f"{row['value']:.3f}{spread}<br><small>[{row['ci_low']:.3f}, {row['ci_high']:.3f}]</small>"


def _difference(row: dict) -> str:
    if row["difference"] is None:
        return _cell("")
    value, interval = f"{row['difference']:+.3f}", f"[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
    if row["verdict"] in ("better", "worse"):
        return _cell(row["verdict"], f"{value} {row['verdict']}<br><small>{interval}</small>")
    if row["verdict"] in ("higher", "lower"):
        return _cell("", f"{value} {row['verdict']}<br><small>{interval}</small>")
    return _cell("same", f"{escape(row['verdict'])}<br><small>{value} {interval}</small>")


def _cell(kind: str, content: str = "—") -> str:
    return f'<td class="{kind}">{content}</td>' if kind else f"<td>{content}</td>"


def _breakable(name: str) -> str:
    """Return the name with line breaks allowed after underscores."""
    return escape(name).replace("_", "_<wbr>")
