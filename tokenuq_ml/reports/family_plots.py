"""Plots that compare ablations: a metric over the quantile, and the overlap of selections.

`family_sections.py` decides which ablations share a plot.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from tokenuq_ml.reports import canvas
from tokenuq_ml.reports.canvas import (
    SEQUENTIAL,
    integer_ticks,
    legend,
    legend_height,
    new_figure,
    series_styles,
    whiskers,
)

MAX_NUMBERED = 14
"""A heat map of more ablations shows only colours, no numbers."""
SMOOTHED_PARTS = 20
"""Long curves are running means over this part of their steps."""


def quantile_curves(points: pl.DataFrame, baseline: pl.DataFrame, baseline_name: str, path: str | Path) -> None:
    """Draw held-out loss over the quantile: one line per curve, one panel per dataset, the baseline dashed.

    Args:
        points: `curve, quantile, dataset, split, value, ci_low, ci_high`, curves and datasets in the order to draw.
        baseline: `dataset, split, value, ci_low, ci_high` of the family that the curves are compared with.
        baseline_name: its name in the legend.
        path: the PNG.
    """
    panels = points.select("dataset", "split").unique(maintain_order=True).rows()
    curves = points["curve"].unique(maintain_order=True).to_list()
    figure, axes = new_figure(3.8 + legend_height(len(curves) + 1), columns=max(len(panels), 1))
    styles = series_styles(curves)
    # Points of several curves at one quantile are drawn next to each other, so that no interval hides another.
    shift = 0.008 * (np.arange(len(curves)) - (len(curves) - 1) / 2)
    for axis, (dataset, split) in zip(axes, panels, strict=False):
        for row in baseline.filter(dataset=dataset, split=split).iter_rows(named=True):
            axis.axhline(row["value"], color="#555555", linestyle="--", linewidth=1, label=baseline_name)
            axis.axhspan(row["ci_low"], row["ci_high"], color="#555555", alpha=0.1, linewidth=0)
        for curve, aside in zip(curves, shift, strict=True):
            rows = points.filter(curve=curve, dataset=dataset, split=split).sort("quantile").to_dicts()
            axis.errorbar(
                [row["quantile"] + aside for row in rows],
                [row["value"] for row in rows],
                yerr=np.hstack([whiskers(row) for row in rows]) if rows else None,
                label=curve,
                linewidth=1.4,
                markersize=4,
                elinewidth=0.8,
                capsize=2,
                **styles[curve],
            )
        axis.set(xlabel="selected share Q", title=f"{dataset} ({split})", xlim=(0, 1.02))
    axes[0].set(ylabel="loss, nats per token")
    legend(figure, *axes[0].get_legend_handles_labels())
    canvas.save(figure, path)


def overlap_matrix(overlap: pl.DataFrame, names: Sequence[str], path: str | Path) -> None:
    """Draw the mean Jaccard index over steps of every pair of ablations; grey if it is not defined.

    Args:
        overlap: columns of `evaluation/selection_overlap.py`.
        names: its ablations, in order.
        path: the PNG.
    """
    matrix = np.full((len(names), len(names)), np.nan)
    place = {name: index for index, name in enumerate(names)}
    for a, b, mean in overlap.group_by("a", "b", maintain_order=True).agg(pl.col("jaccard").mean()).iter_rows():
        matrix[place[a], place[b]] = matrix[place[b], place[a]] = np.nan if mean is None else mean
    np.fill_diagonal(matrix, 1.0)
    figure, (axis,) = new_figure(min(7.0, 3.0 + 0.25 * len(names)))
    axis.grid(False)
    axis.set_facecolor("#dddddd")
    image = axis.imshow(matrix, vmin=0, vmax=1, cmap=SEQUENTIAL)
    ticks, size = range(len(names)), 8 if len(names) <= MAX_NUMBERED else 6.5
    axis.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axis.set_yticks(ticks, names, fontsize=size)
    if len(names) <= MAX_NUMBERED:
        for row, column in np.ndindex(matrix.shape):
            value = matrix[row, column]
            if row != column and np.isfinite(value):
                ink = "black" if value < 0.6 else "white"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=7.5)
    figure.colorbar(image, ax=axis, label="mean Jaccard index over steps", shrink=0.9)
    canvas.save(figure, path)


def overlap_over_steps(overlap: pl.DataFrame, anchor: str, path: str | Path) -> None:
    """Draw the Jaccard index of each ablation's selection with the anchor's over steps; legend from high to low.

    Long trainings are drawn as running means over a twentieth of their steps.
    """
    pairs = overlap.filter((pl.col("a") == anchor) | (pl.col("b") == anchor)).drop_nulls("jaccard")
    pairs = pairs.with_columns(other=pl.when(pl.col("a") == anchor).then("b").otherwise("a")).sort("step")
    others = pairs["other"].unique(maintain_order=True).to_list()
    styles = series_styles(others)
    figure, (axis,) = new_figure(3.8 + legend_height(len(others)))
    curves = {other: pairs.filter(other=other) for other in others}
    window = max((len(rows) for rows in curves.values()), default=0) // SMOOTHED_PARTS
    for other in sorted(curves, key=lambda other: -curves[other]["jaccard"].mean()):
        rows = curves[other]
        smooth = rows["jaccard"].rolling_mean(window, min_samples=1, center=True) if window > 1 else rows["jaccard"]
        axis.plot(rows["step"], smooth, label=other, linewidth=1.2, **styles[other] | {"marker": ""})
    mean = f", running mean over {window} steps" if window > 1 else ""
    axis.set(xlabel=f"optimiser step{mean}", ylabel=f"Jaccard index with {anchor}", ylim=(0, 1.02))
    integer_ticks(axis)
    legend(figure, *axis.get_legend_handles_labels())
    canvas.save(figure, path)
