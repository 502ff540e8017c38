"""Pictures that compare ablations with each other: a metric over the quantile, and how far selections overlap.

Draws the frames it is given; which ablations belong into one picture is decided in `comparison.py`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from tokenuq_ml.reports import canvas
from tokenuq_ml.reports.canvas import SEQUENTIAL, legend, legend_height, looks, new_figure, whiskers, whole_steps

NAMED_CELLS = 14
"""A heat map of more ablations shows colours alone."""
SMOOTHED_PARTS = 20


def quantile_curves(points: pl.DataFrame, baseline: pl.DataFrame, baseline_name: str, path: str | Path) -> None:
    """Held-out loss over the quantile, a line a set of ablations, a panel a dataset; the baseline as a dashed line.

    Args:
        points: `curve, quantile, dataset, split, value, ci_low, ci_high`, curves and datasets in the order to draw.
        baseline: `dataset, split, value, ci_low, ci_high` of the family that the curves are to be held against.
    """
    panels = points.select("dataset", "split").unique(maintain_order=True).rows()
    curves = points["curve"].unique(maintain_order=True).to_list()
    figure, axes = new_figure(3.8 + legend_height(len(curves) + 1), columns=max(len(panels), 1))
    look = looks(curves)
    # Points of curves at one quantile stand beside each other, so that no interval hides another.
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
                **look[curve],
            )
        axis.set(xlabel="selected share Q", title=f"{dataset} ({split})", xlim=(0, 1.02))
    axes[0].set(ylabel="loss, nats a token")
    legend(figure, *axes[0].get_legend_handles_labels())
    canvas.save(figure, path)


def overlap_matrix(overlap: pl.DataFrame, names: Sequence[str], path: str | Path) -> None:
    """The Jaccard index of every pair, as its mean over steps; grey where it is not defined.

    `overlap` has the columns of `evaluation/selection_overlap.py`; `names` are its ablations, in order.
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
    ticks, size = range(len(names)), 8 if len(names) <= NAMED_CELLS else 6.5
    axis.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axis.set_yticks(ticks, names, fontsize=size)
    if len(names) <= NAMED_CELLS:
        for row, column in np.ndindex(matrix.shape):
            value = matrix[row, column]
            if row != column and np.isfinite(value):
                ink = "black" if value < 0.6 else "white"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=7.5)
    figure.colorbar(image, ax=axis, label="mean Jaccard index over steps", shrink=0.9)
    canvas.save(figure, path)


def overlap_over_steps(overlap: pl.DataFrame, anchor: str, path: str | Path) -> None:
    """The Jaccard index of each ablation's selection with the anchor's over steps, the legend from high to low.

    Long trainings are drawn as running means over a twentieth of their steps.
    """
    pairs = overlap.filter((pl.col("a") == anchor) | (pl.col("b") == anchor)).drop_nulls("jaccard")
    pairs = pairs.with_columns(other=pl.when(pl.col("a") == anchor).then("b").otherwise("a")).sort("step")
    others = pairs["other"].unique(maintain_order=True).to_list()
    look = looks(others)
    figure, (axis,) = new_figure(3.8 + legend_height(len(others)))
    curves = {other: pairs.filter(other=other) for other in others}
    window = max((len(rows) for rows in curves.values()), default=0) // SMOOTHED_PARTS
    for other in sorted(curves, key=lambda other: -curves[other]["jaccard"].mean()):
        rows = curves[other]
        smooth = rows["jaccard"].rolling_mean(window, min_samples=1, center=True) if window > 1 else rows["jaccard"]
        axis.plot(rows["step"], smooth, label=other, linewidth=1.2, **look[other] | {"marker": ""})
    mean = f", running mean over {window} steps" if window > 1 else ""
    axis.set(xlabel=f"optimiser step{mean}", ylabel=f"Jaccard index with {anchor}", ylim=(0, 1.02))
    whole_steps(axis)
    legend(figure, *axis.get_legend_handles_labels())
    canvas.save(figure, path)
