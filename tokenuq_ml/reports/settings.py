"""The settings at which families were trained: their validation losses, and which one a family is compared at.

Settings differ in what `train` of an ablation sets, such as the learning rate. The choice uses the validation split
only. Plain rows, and the report's fragments that show them.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import polars as pl

from tokenuq_ml.config import AblationSpec, TrainSpec
from tokenuq_ml.config.families import settings_of
from tokenuq_ml.config.train import BUDGET_KEYS
from tokenuq_ml.evaluation.validation import mean_loss
from tokenuq_ml.reports import html


def setting_rows(
    ablations: Mapping[str, AblationSpec],
    validation: Mapping[str, pl.DataFrame],
    models: Sequence[dict],
    train: TrainSpec,
) -> list[dict]:
    """Return one row per setting of each family that has several.

    Args:
        ablations: of the study.
        validation: ablation -> its table `validation_losses`, for those families.
        models: rows of `ablation_table.table_rows`.
        train: the study's training budget.

    Returns:
        For each setting: `validation_loss` (mean over seeds, nats per token), `validation_spread` (standard deviation
        over seeds; None for one seed), the mean over seeds of each `loss` metric as `<split> <dataset>`, `chosen`
        (the lowest validation loss of the family; the first of equals), and `at_edge`: the keys whose value is the
        lowest or highest that the family was trained with, if the setting is chosen and they have several values.
    """
    losses = {(row["model"], row["split"], row["dataset"]): row["value"] for row in models if row["metric"] == "loss"}
    panels = list(dict.fromkeys((split, dataset) for _, split, dataset in losses))
    rows = []
    for family, settings in settings_of(ablations).items():
        if len(settings) == 1:
            continue
        own = []
        for setting, names in settings.items():
            values = [mean_loss(validation[name]) for name in names]
            own.append(
                {
                    "family": family,
                    "setting": setting,
                    "trained_with": ablations[names[0]].train.text,
                    "models": " ".join(names),
                    "n_seeds": len(names),
                    "validation_loss": fmean(values),
                    "validation_spread": stdev(values) if len(values) > 1 else None,
                    **{f"{split} {dataset}": _mean(losses, names, split, dataset) for split, dataset in panels},
                }
            )
        best = min(own, key=lambda row: row["validation_loss"])
        budgets = {setting: ablations[names[0]].train.of(train) for setting, names in settings.items()}
        for row in own:
            edges = _edges(budgets[row["setting"]], list(budgets.values())) if row is best else []
            rows.append({**row, "chosen": row is best, "at_edge": edges})
    return rows


def compared(ablations: Mapping[str, AblationSpec], rows: Sequence[dict]) -> dict[str, AblationSpec]:
    """Return the ablations without the settings that were not chosen, in their order."""
    left_out = {name for row in rows if not row["chosen"] for name in row["models"].split()}
    return {name: ablation for name, ablation in ablations.items() if name not in left_out}


def settings_note(rows: Sequence[dict]) -> str:
    """Return how settings were chosen, and which are at the edge of what was tried; empty without rows."""
    if not rows:
        return ""
    tried = settings_count(rows)
    chosen = [row for row in rows if row["chosen"]]
    named = "; ".join(f"{row['family']}: {row['trained_with']} (of {tried[row['family']]})" for row in chosen)
    note = (
        "Each family is compared at the setting with its lowest mean loss on the validation split; test and ood "
        f"examples have no part in the choice. {named}. Intervals do not include the variance of that choice."
    )
    edges = [f"{row['family']} ({', '.join(row['at_edge'])})" for row in chosen if row["at_edge"]]
    if edges:
        note += (
            f" Chosen at the lowest or highest value that was tried: {', '.join(edges)}. A better one may lie beyond "
            "it, so widen the sweep before you trust these rows."
        )
    return note


def settings_count(rows: Sequence[dict]) -> dict[str, int]:
    """Return family -> the number of its settings."""
    return {family: sum(row["family"] == family for row in rows) for family in dict.fromkeys(r["family"] for r in rows)}


def settings_table(rows: Sequence[dict]) -> str:
    """Return one row per setting: validation loss, then test and ood losses; the chosen ones are marked."""
    fixed = ("family", "setting", "trained_with", "models", "n_seeds", "validation_loss", "validation_spread")
    panels = [key for key in rows[0] if key not in (*fixed, "chosen", "at_edge")]
    header = ["family", "trained with", "seeds", "validation loss", *(f"{panel} loss" for panel in panels), ""]
    lines = []
    for row in rows:
        spread = "" if row["validation_spread"] is None else f" ± {row['validation_spread']:.4f}"
        others = ["—" if row[panel] is None else f"{row[panel]:.4f}" for panel in panels]
        marks = ["chosen" if row["chosen"] else "", "at the edge" if row["at_edge"] else ""]
        loss = f"{row['validation_loss']:.4f}{spread}"
        about = ", ".join(filter(None, marks))
        lines.append([row["family"], row["trained_with"], str(row["n_seeds"]), loss, *others, about])
    return html.table(header, lines) + html.paragraph(
        "Mean losses over seeds, nats per response token; ± the standard deviation over seeds.", "dim"
    )


def candidates_table(candidates: pl.DataFrame) -> str:
    """Return the teachers that were tried, with their validation losses."""
    header = ["teacher", "learning rate", "epochs", "weight decay", "validation loss", "interval", ""]
    rows = []
    for row in candidates.iter_rows(named=True):
        values = ["the study's" if row[key] is None else f"{row[key]:g}" for key in BUDGET_KEYS]
        interval = f"[{row['ci_low']:.4f}, {row['ci_high']:.4f}]"
        rows.append(
            [row["candidate"], *values, f"{row['loss']:.4f}", interval, "the study's teacher" if row["chosen"] else ""]
        )
    return html.table(header, rows)


def _mean(losses: Mapping[tuple[str, str, str], float], names: Sequence[str], split: str, dataset: str) -> float | None:
    found = [losses.get((name, split, dataset)) for name in names]
    values = [value for value in found if value is not None]
    return fmean(values) if len(values) == len(names) else None


def _edges(chosen: TrainSpec, tried: Sequence[TrainSpec]) -> list[str]:
    """Return which keys of the chosen budget have the lowest or highest of several values."""
    edges = []
    for key in BUDGET_KEYS:
        values = {getattr(budget, key) for budget in tried}
        if len(values) > 1 and getattr(chosen, key) in (min(values), max(values)):
            edges.append(f"{key.replace('_', ' ')} {getattr(chosen, key):g}")
    return edges
