"""Sections of the report that compare families: the family table, curves over the quantile, overlap of selections.

Decides which ablations share a plot. `evaluation/` computes the statistics, and `family_plots.py` draws.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from tokenuq_ml.config import REFERENCE_ROWS, AblationSpec, EvaluationSpec
from tokenuq_ml.evaluation.selection_overlap import selection_overlap
from tokenuq_ml.reports import family_plots, html
from tokenuq_ml.reports.canvas import SIDE_ENTRIES
from tokenuq_ml.reports.family_table import BASELINE, families_of
from tokenuq_ml.reports.result_tables import ablation_table, family_table
from tokenuq_ml.reports.settings import settings_note, settings_table

MAX_COMPARED = 24
"""Selections in one heat map; more would not be readable."""
ANCHOR = "paper_top25"
"""Family whose selection the others are compared with over steps."""
POINT = ["dataset", "split", "value", "ci_low", "ci_high"]


def results(
    families: Sequence[dict],
    models: Sequence[dict],
    ablations: Mapping[str, AblationSpec],
    evaluation: EvaluationSpec,
    tried: Sequence[dict] = (),
) -> str:
    """Return the table of families, and the collapsed tables of settings and of single models.

    Args:
        families: rows of `family_table.family_rows`.
        models: rows of `ablation_table.table_rows`.
        ablations: all ablations of the study.
        evaluation: how intervals were computed.
        tried: rows of `settings.setting_rows`.
    """
    students = [row for row in families if row["verdict"] is not None and row["family"] not in REFERENCE_ROWS]
    against, compared = families[0]["against"], len(students)
    expected_by_chance = compared * (1 - evaluation.confidence)
    several = any(row["n_seeds"] > 1 for row in families)
    notes = [
        f"Each family's mean over its seeds, ± the standard deviation over seeds, with the {evaluation.confidence:.0%} "
        f"bootstrap interval over examples and seeds; then its difference to {against} on the same examples, with the "
        "interval of that difference. ↓ lower is better, ↑ higher is better. A difference whose interval contains 0 "
        "is not distinguishable. A static selection does not depend on what the student has learnt; a dynamic one does."
    ]
    if against != BASELINE:
        notes.append(f"The study has no family {BASELINE}, so families are compared with its first one, {against}.")
    notes.append(
        "With few seeds, intervals are too narrow if seeds differ more than examples do."
        if several
        else "Each family has one seed, so the intervals do not include the variance over seeds."
    )
    if compared:
        notes.append(
            f"There is no correction for the number of comparisons: of {compared} differences that are truly 0, "
            f"about {expected_by_chance:.2g} would be called distinguishable."
        )
    single = ablation_table(models) + html.paragraph(
        f"Each single model, with its {evaluation.confidence:.0%} bootstrap interval over examples. A value is "
        "marked as best only if its interval overlaps no other.",
        "dim",
    )
    settings = ""
    if tried:
        settings = html.paragraph(settings_note(tried))
        settings += html.details(f"All settings ({len(tried)})", settings_table(tried))
    return (
        family_table(families)
        + settings
        + html.paragraph(" ".join(notes), "dim")
        + html.details(f"Single models ({len(ablations) + len(REFERENCE_ROWS)})", single)
    )


def quantile_sets(ablations: Mapping[str, AblationSpec]) -> dict[str, dict[str, float]]:
    """Return curve -> family -> quantile; a curve has at least two families, which differ only in the quantile."""
    sets: dict[str, dict[str, float]] = {}
    for family, (first, *_) in families_of(ablations).items():
        fields = ablations[first].fields()
        quantile = fields["select"].pop("quantile")
        if ablations[first].select.takes_all or not isinstance(quantile, int | float):
            continue
        for own in ("name", "seed", "train"):
            fields.pop(own, None)
        sets.setdefault(json.dumps(fields, sort_keys=True), {})[family] = quantile
    curves: dict[str, dict[str, float]] = {}
    for members in sets.values():
        if len(set(members.values())) > 1:
            common = os.path.commonprefix(list(members)).rstrip("_0123456789")
            name = common if common and common not in curves else next(iter(members))
            curves[name] = members
    return curves


def quantiles(families: Sequence[dict], ablations: Mapping[str, AblationSpec], folder: Path) -> str | None:
    """Return the quantile curves; None if no families differ only in the quantile."""
    curves = quantile_sets(ablations)
    if not curves:
        return None
    rows = pl.DataFrame(families, infer_schema_length=None).filter(metric="loss")
    points = pl.concat(
        rows.filter(family=family).select(pl.lit(curve).alias("curve"), pl.lit(quantile).alias("quantile"), *POINT)
        for curve, members in curves.items()
        for family, quantile in members.items()
    )
    against = families[0]["against"]
    baseline = rows.filter(family=against).select(POINT)
    family_plots.quantile_curves(points, baseline, against, folder / "quantile_curves.png")
    meaning = (
        "Families that differ only in the quantile. Bars are intervals over examples and seeds; the dashed line is "
        f"{against} with its interval. "
        + " ".join(f"{curve}: {', '.join(members)}." for curve, members in curves.items())
    )
    return html.pictures([html.picture(folder / "quantile_curves.png", "Held-out loss over the quantile", meaning)])


def compared_selections(ablations: Mapping[str, AblationSpec]) -> list[str]:
    """Return the ablations that select part of the tokens, for the lowest seed that has two; in the study's order."""
    by_seed: dict[int, list[str]] = {}
    for name, ablation in ablations.items():
        if ablation.select.is_partial:
            by_seed.setdefault(ablation.seed, []).append(name)
    return next((names for _, names in sorted(by_seed.items()) if len(names) > 1), [])


def overlap(ablations: Mapping[str, AblationSpec], selections: Mapping[str, pl.LazyFrame], folder: Path) -> str | None:
    """Return the overlap of selections; None if no seed has two ablations that select part of the tokens."""
    names = compared_selections(ablations)
    if not names:
        return None
    anchor = next((name for name in names if ablations[name].family == ANCHOR), names[0])
    shown = [name for name in names if name != anchor][: MAX_COMPARED - 1] + [anchor]
    shown = [name for name in names if name in shown]
    found = selection_overlap(_in_common_steps({name: selections[name] for name in shown}))
    family_plots.overlap_matrix(found, shown, folder / "selection_overlap.png")
    family_plots.overlap_over_steps(found, anchor, folder / "selection_overlap_steps.png")
    left_out = f" {len(shown)} of {len(names)} selections are shown." if len(shown) < len(names) else ""
    return html.pictures(
        [
            html.picture(
                folder / "selection_overlap.png",
                "Overlap of selections",
                "Tokens that both ablations select, over tokens that either selects: means over optimiser steps, for "
                f"ablations of seed {ablations[anchor].seed}, which see the same batches.{left_out}",
            ),
            html.picture(
                folder / "selection_overlap_steps.png",
                f"Overlap with {anchor} over training",
                "Two independent selections of a quarter of the tokens would overlap by 0.14. As the student learns, a "
                "dynamic selection drifts away from a static one.",
            ),
        ],
        # Next to each other, pictures with many names would have labels too small to read.
        wide=len(shown) > SIDE_ENTRIES,
    )


def _in_common_steps(selections: Mapping[str, pl.LazyFrame]) -> dict[str, pl.LazyFrame]:
    """Return the selections up to the last step that all of them have: budgets may differ in their steps."""
    last = [frame.select(pl.col("step").max()).collect().item() for frame in selections.values()]
    common = min((step for step in last if step is not None), default=0)
    return {name: frame.filter(pl.col("step") <= common) for name, frame in selections.items()}
