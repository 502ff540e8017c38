"""Sections of the report that compare families: the family table, curves over the quantile, overlap of selections.

Decides which ablations belong together in a picture; computes no statistic (`evaluation/`) and draws nothing itself.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from tokenuq_ml.config import REFERENCE_ROWS, AblationSpec, EvaluationSpec
from tokenuq_ml.evaluation.selection_overlap import selection_overlap
from tokenuq_ml.reports import comparison_plots, html
from tokenuq_ml.reports.family_table import BASELINE, families_of, verdict
from tokenuq_ml.reports.result_tables import ablation_table, family_table

MOST_COMPARED = 24
"""Selections in one heat map: more could not be read."""
ANCHOR = "paper_top25"
POINT = ["dataset", "split", "value", "ci_low", "ci_high"]


def results(
    families: Sequence[dict], models: Sequence[dict], ablations: Mapping[str, AblationSpec], evaluation: EvaluationSpec
) -> str:
    """The verdict, the table of families, and behind it the table of single models."""
    students = [row for row in families if row["verdict"] is not None and row["family"] not in REFERENCE_ROWS]
    against, compared = families[0]["against"], len(students)
    chance = compared * (1 - evaluation.confidence)
    several = any(row["n_seeds"] > 1 for row in families)
    notes = [
        f"Each family's mean over its seeds, ± the standard deviation over seeds, with the {evaluation.confidence:.0%} "
        f"bootstrap interval over examples and seeds; then its difference to {against} on the same examples, with the "
        "interval of that difference. ↓ lower is better, ↑ higher is better. A difference whose interval holds 0 "
        "is not distinguishable. Selections: static does not depend on what the student has learnt, dynamic does."
    ]
    if against != BASELINE:
        notes.append(f"The study has no family {BASELINE}: families are compared with its first, {against}.")
    notes.append(
        "With few seeds the intervals are too narrow where seeds differ more than examples do."
        if several
        else "Each family has one seed: what another seed would give is not in the intervals."
    )
    if compared:
        notes.append(
            f"Nothing is corrected for the number of comparisons: of {compared} differences that are truly 0, "
            f"about {chance:.2g} would be called distinguishable."
        )
    single = ablation_table(models) + html.paragraph(
        f"Every model by itself, with its {evaluation.confidence:.0%} bootstrap interval over examples. A value is "
        "marked only where its interval overlaps no other.",
        "dim",
    )
    return (
        html.paragraph(verdict(families), "verdict")
        + family_table(families)
        + html.paragraph(" ".join(notes), "dim")
        + html.details(f"Every model by itself ({len(ablations) + len(REFERENCE_ROWS)})", single)
    )


def quantile_sets(ablations: Mapping[str, AblationSpec]) -> dict[str, dict[str, float]]:
    """Curve -> family -> quantile, of families whose sentences differ in nothing but the quantile; two at least."""
    sets: dict[str, dict[str, float]] = {}
    for family, (first, *_) in families_of(ablations).items():
        sentence = ablations[first].fields()
        quantile = sentence["select"].pop("quantile")
        if ablations[first].select.takes_all or not isinstance(quantile, int | float):
            continue
        for own in ("name", "seed"):
            sentence.pop(own)
        sets.setdefault(json.dumps(sentence, sort_keys=True), {})[family] = quantile
    curves: dict[str, dict[str, float]] = {}
    for members in sets.values():
        if len(set(members.values())) > 1:
            common = os.path.commonprefix(list(members)).rstrip("_0123456789")
            name = common if common and common not in curves else next(iter(members))
            curves[name] = members
    return curves


def quantiles(families: Sequence[dict], ablations: Mapping[str, AblationSpec], folder: Path) -> str | None:
    """The quantile curves, or None where no set of families differs in the quantile alone."""
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
    comparison_plots.quantile_curves(points, baseline, against, folder / "quantile_curves.png")
    meaning = (
        "Families whose sentences differ in nothing but the quantile. Bars are intervals over examples and seeds; the "
        f"dashed line is {against} with its interval. "
        + " ".join(f"{curve}: {', '.join(members)}." for curve, members in curves.items())
    )
    return html.pictures([html.picture(folder / "quantile_curves.png", "Held-out loss over the quantile", meaning)])


def compared_selections(ablations: Mapping[str, AblationSpec]) -> list[str]:
    """Ablations of one seed that select some of the tokens: of the lowest seed that has two, in the study's order."""
    by_seed: dict[int, list[str]] = {}
    for name, ablation in ablations.items():
        if ablation.select.is_partial:
            by_seed.setdefault(ablation.seed, []).append(name)
    return next((names for _, names in sorted(by_seed.items()) if len(names) > 1), [])


def overlap(ablations: Mapping[str, AblationSpec], selections: Mapping[str, pl.LazyFrame], folder: Path) -> str | None:
    """How far selections take the same tokens, or None where no two ablations of a seed select."""
    names = compared_selections(ablations)
    if not names:
        return None
    anchor = next((name for name in names if ablations[name].family == ANCHOR), names[0])
    shown = [name for name in names if name != anchor][: MOST_COMPARED - 1] + [anchor]
    shown = [name for name in names if name in shown]
    found = selection_overlap({name: selections[name] for name in shown})
    comparison_plots.overlap_matrix(found, shown, folder / "selection_overlap.png")
    comparison_plots.overlap_over_steps(found, anchor, folder / "selection_overlap_steps.png")
    left_out = f" Of {len(names)} selections {len(shown)} are shown." if len(shown) < len(names) else ""
    return html.pictures(
        [
            html.picture(
                folder / "selection_overlap.png",
                "Overlap of selections",
                "Tokens that both select over tokens that either selects, as a mean over optimiser steps; "
                f"ablations of seed {ablations[anchor].seed}, which see the same batches.{left_out}",
            ),
            html.picture(
                folder / "selection_overlap_steps.png",
                f"Overlap with {anchor} as training goes on",
                "Two selections of a quarter of the tokens, independent of each other, would overlap by 0.14. "
                "A static selection that drifts away from a dynamic one shows what the student has learnt.",
            ),
        ]
    )
