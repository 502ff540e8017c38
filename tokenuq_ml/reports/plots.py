"""Plots of the tables: one function per plot, which reads frames and writes a PNG.

Plots that compare ablations over quantiles or selections are in `family_plots.py`, those of the token tables in
`token_plots.py`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tokenuq_ml.config import BASE_ROW
from tokenuq_ml.reports import canvas
from tokenuq_ml.reports.canvas import (
    LINE_COLOURS,
    SEQUENTIAL,
    SIDE_ENTRIES,
    integer_ticks,
    legend,
    legend_height,
    new_figure,
    series_styles,
    whiskers,
)

# From the palette of Okabe and Ito; a category has the same colour in every plot.
CATEGORY_COLOURS = {
    "special": "#000000",
    "whitespace": "#bbbbbb",
    "punctuation": "#56b4e9",
    "number": "#d55e00",
    "word": "#0072b2",
    "subword": "#009e73",
    "code": "#cc79a7",
}
PANELS_PER_ROW = 4
MARKED_STEPS = 60
"""Longer curves have no marker at each step, since markers would merge into a band."""
FLOOR_NATS = 1e-6
"""Lower end of logarithmic axes; smaller values are drawn there."""


def _mark(steps: int) -> str:
    return "o" if steps <= MARKED_STEPS else ""


def _log10(nats: pl.Series) -> np.ndarray:
    return np.log10(np.maximum(nats.to_numpy().astype(np.float64), FLOOR_NATS))


def powers_of_ten(exponent: float, _: int) -> str:
    """Return the label of a tick on an axis that shows exponents."""
    return f"$10^{{{exponent:g}}}$"


def training_curve(training_log: pl.DataFrame, path: str | Path) -> None:
    """Draw the objective and its two parts over optimiser steps."""
    figure, (axis,) = new_figure(3.4)
    parts = (
        ("loss", "objective", 2.0),
        ("mle_loss", "cross-entropy of tokens trained by MLE", 1.2),
        ("distill_loss", "divergence of distilled tokens", 1.2),
    )
    for (column, label, width), colour in zip(parts, LINE_COLOURS, strict=False):
        rows = training_log.filter(pl.col(column).is_not_null())
        same = column == "mle_loss" and rows["mle_loss"].equals(rows["loss"].alias("mle_loss"))
        if len(rows) and not same:
            axis.plot(
                rows["step"],
                rows[column],
                marker=_mark(len(rows)),
                markersize=3,
                linewidth=width,
                color=colour,
                label=label,
            )
    axis.set(xlabel="optimiser step", ylabel="nats per token", title="Training")
    axis.set_ylim(bottom=0)
    integer_ticks(axis)
    if axis.lines:
        axis.legend(frameon=False)
    canvas.save(figure, path)


def training_curves(logs: Mapping[str, pl.DataFrame], path: str | Path) -> None:
    """Draw each model's objective and gradient norm over optimiser steps."""
    figure, (left, right) = new_figure(3.6 + legend_height(len(logs)), columns=2)
    styles = series_styles(logs)
    for name, log in logs.items():
        style = styles[name] | {"marker": styles[name]["marker"] if len(log) <= MARKED_STEPS else ""}
        for axis, column in ((left, "loss"), (right, "grad_norm")):
            axis.plot(log["step"], log[column], markersize=2.5, linewidth=1.2, label=name, **style)
    left.set(xlabel="optimiser step", ylabel="objective, nats per token")
    right.set(xlabel="optimiser step", ylabel="gradient norm before clipping")
    for axis in (left, right):
        integer_ticks(axis)
    legend(figure, *left.get_legend_handles_labels())
    canvas.save(figure, path)


def loss_vs_bald(tokens: pl.DataFrame, analysis: pl.DataFrame, path: str | Path) -> None:
    """Draw hexagonal bins of the teacher's loss against BALD, for all tokens and for each category, on one scale.

    Args:
        tokens: `category, loss, bald`, one row per token.
        analysis: the table `uncertainty_analysis`, for the correlations above each panel.
        path: the PNG.
    """
    parts = {str(name): rows for (name,), rows in tokens.select("category", "loss", "bald").group_by("category")}
    present = [category for category in CATEGORY_COLOURS if category in parts]
    columns = min(1 + len(present), PANELS_PER_ROW)
    rows = -(-(1 + len(present)) // columns)
    figure, axes = new_figure(0.5 + (2.1 if rows > 1 else 3.4) * rows, columns, rows, shared=True)
    norm = None
    for axis, category in zip(axes, ["all", *present], strict=False):
        part = tokens if category == "all" else parts[category]
        axis.set_title(f"{category} ({len(part):,})\n{_correlations_of(analysis, category)}", fontsize=7.5)
        if not len(part):
            continue
        loss, bald = _log10(part["loss"]), _log10(part["bald"])
        if norm is None:
            extent = (loss.min() - 0.1, loss.max() + 0.1, bald.min() - 0.1, bald.max() + 0.1)
        bins = axis.hexbin(loss, bald, gridsize=22, extent=extent, norm=norm, cmap=SEQUENTIAL, mincnt=1, linewidths=0.1)
        if norm is None:
            norm = LogNorm(1, max(float(bins.get_array().max()), 2))
            bins.set_norm(norm)
    for axis in axes[1 + len(present) :]:
        axis.set_visible(False)
    for axis in (axes[0].xaxis, axes[0].yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axis.set_major_formatter(FuncFormatter(powers_of_ten))
    for axis in axes:
        axis.tick_params(labelsize=7.5)
    figure.supxlabel(f"loss, nats (at least $10^{{{np.log10(FLOOR_NATS):g}}}$)", fontsize=9)
    figure.supylabel("BALD, nats", fontsize=9)
    if norm is not None:
        figure.colorbar(ScalarMappable(norm, SEQUENTIAL), ax=axes, label="tokens", aspect=40, pad=0.01)
    canvas.save(figure, path)


def _correlations_of(analysis: pl.DataFrame, category: str) -> str:
    """Return Spearman's correlation of loss with BALD, and the partial one given entropy, as text."""
    rows = analysis.filter(split="all", category=category, x="loss", y="bald")
    values = dict(rows.select("method", "value").iter_rows())
    texts = ["–" if values.get(name) is None else f"{values[name]:.2f}" for name in ("spearman", "partial_spearman")]
    return f"ρ {texts[0]}, given entropy {texts[1]}"


def selected_categories(curriculum: pl.DataFrame, path: str | Path) -> None:
    """Draw the categories of the selected tokens: shares as stacked areas over optimiser steps.

    A step has a width of 1, so that a training of one step has areas too. A step that selected nothing is empty.
    """
    figure, (axis,) = new_figure(3.6)
    steps = curriculum["step"].unique().sort()
    counts = {}
    for (category,), rows in curriculum.with_columns(pl.col("category").cast(pl.String)).group_by("category"):
        summed = rows.group_by("step").agg(pl.col("n_selected").sum())
        counts[category] = (
            steps.to_frame().join(summed, on="step", how="left", maintain_order="left")["n_selected"].fill_null(0)
        ).to_numpy()
    totals = np.maximum(sum(counts.values(), start=np.zeros(len(steps))), 1)
    shares = {name: counts[name] / totals for name in CATEGORY_COLOURS if name in counts and counts[name].any()}
    if shares:
        edges = np.stack([steps.to_numpy() - 0.5, steps.to_numpy() + 0.5], 1).ravel()
        areas = [np.repeat(share, 2) for share in shares.values()]
        axis.stackplot(edges, *areas, labels=list(shares), colors=[CATEGORY_COLOURS[name] for name in shares])
        axis.set_xlim(edges[0], edges[-1])
        # In the order of the stack, from the top.
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    axis.set(xlabel="optimiser step", ylabel="share of selected tokens", ylim=(0, 1), title="What the selection takes")
    integer_ticks(axis)
    canvas.save(figure, path)


def uncertainty_over_training(curriculum_uncertainty: pl.DataFrame, path: str | Path) -> None:
    """Draw loss and BALD of the fixed validation sample over training."""
    figure, (left, right) = new_figure(3.4, columns=2)
    rows = curriculum_uncertainty.filter(pl.col("category") == "all").sort("step")
    left.plot(rows["fraction"] * 100, rows["loss"], marker="o", color=LINE_COLOURS[0])
    left.set(xlabel="training done, %", ylabel="loss, nats per token", title="Loss of the validation sample")
    right.plot(rows["fraction"] * 100, rows["bald"], marker="o", color=LINE_COLOURS[1])
    right.set(xlabel="training done, %", ylabel="BALD, nats per token", title="Epistemic uncertainty")
    right.set_ylim(bottom=0)
    canvas.save(figure, path)


def id_vs_ood(evaluations: pl.DataFrame, path: str | Path, metric: str = "loss") -> None:
    """Draw held-out loss in against out of distribution, with intervals and the Pareto front.

    Args:
        evaluations: `model, dataset, split, metric, value, ci_low, ci_high`. Each OOD dataset has its own panel.
        path: the PNG.
        metric: another metric in nats per token.
    """
    losses = evaluations.filter(pl.col("metric") == metric)
    inside = {row["model"]: row for row in losses.filter(pl.col("split") == "test").iter_rows(named=True)}
    outside = losses.filter(pl.col("split") == "ood")
    datasets = outside["dataset"].unique().sort().to_list()
    figure, axes = new_figure(4.2 + legend_height(len(inside)), columns=max(len(datasets), 1))
    styles = series_styles(inside)
    for axis, dataset in zip(axes, datasets, strict=False):
        points = [
            (row["model"], inside[row["model"]], row)
            for row in outside.filter(pl.col("dataset") == dataset).iter_rows(named=True)
            if row["model"] in inside
        ]
        _draw_losses(axis, points, styles)
        axis.set(xlabel=f"{metric} on test, nats per token", ylabel=f"{metric} on {dataset}, nats per token")
    for axis in axes[len(datasets) :]:
        axis.set(xlabel=f"{metric} on test, nats per token", ylabel=f"{metric} out of distribution, nats per token")
    figure.suptitle("Lower left is better")
    legend(figure, *axes[0].get_legend_handles_labels())
    canvas.save(figure, path)


def _draw_losses(axis: Axes, points: list[tuple[str, dict, dict]], styles: dict[str, dict]) -> None:
    """Draw `(model, row in distribution, row out of distribution)` with intervals and the Pareto front."""
    many = len(points) > SIDE_ENTRIES
    far = _far_away([(x["value"], y["value"]) for name, x, y in points if name != BASE_ROW])
    for name, x, y in points:
        if name == BASE_ROW and far(x["value"], y["value"]):
            # Inside the frame it would squeeze all others into one corner.
            note = f"base is outside, at {x['value']:.2f}, {y['value']:.2f}"
            axis.set_title(note, loc="right", fontsize=7.5)
            continue
        _, _, bars = axis.errorbar(
            x["value"],
            y["value"],
            xerr=whiskers(x),
            yerr=whiskers(y),
            fmt=styles[name]["marker"],
            color=styles[name]["color"],
            markersize=5,
            elinewidth=0.8,
            label=name,
        )
        if many:
            # With many models, intervals would hide the points.
            for bar in bars:
                bar.set_alpha(0.25)
    front = pareto_front([(x["value"], y["value"]) for _, x, y in points])
    if len(front) > 1:
        style = {"color": "#888888", "linestyle": "--", "linewidth": 1, "zorder": 0, "label": "Pareto front"}
        axis.step(*zip(*front, strict=True), where="post", **style)
        axis.plot(*zip(*front, strict=True), "o", markersize=11, fillstyle="none", color="#888888", zorder=0)
    if many:
        _frame_points(axis)


def _frame_points(axis: Axes) -> None:
    """Set limits around the points, with some room; intervals may be cut."""
    x, y = (np.array([getattr(bars.lines[0], f"get_{way}data")()[0] for bars in axis.containers]) for way in "xy")
    for values, limit in ((x, axis.set_xlim), (y, axis.set_ylim)):
        room = 0.12 * max(float(np.ptp(values)), 1e-3)
        limit(values.min() - room, values.max() + room)


def _far_away(points: list[tuple[float, float]]) -> Callable[[float, float], bool]:
    """Return a test whether a point is above the others by more than twice their range, in either coordinate."""
    if len(points) < 2:
        return lambda x, y: False
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    return lambda x, y: bool((np.array([x, y]) > high + 2 * (high - low)).any())


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point beats in both coordinates (lower is better), sorted by the first."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
