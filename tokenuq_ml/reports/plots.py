"""Pictures of the tables: one function a plot, a frame in, a PNG out.

Knows the tables' columns; computes nothing that a reader could not check from them. Pictures that compare
ablations over quantiles or selections are `comparison_plots.py`'s.
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
    legend,
    legend_height,
    looks,
    new_figure,
    whiskers,
    whole_steps,
)

# Of Okabe and Ito's palette; one colour a category in every plot.
CATEGORY_COLOURS = {
    "special": "#000000",
    "whitespace": "#bbbbbb",
    "punctuation": "#56b4e9",
    "number": "#d55e00",
    "word": "#0072b2",
    "subword": "#009e73",
    "code": "#cc79a7",
}
PANELS_A_ROW = 4
MARKED_STEPS = 60
"""Longer curves go without a mark at each step: the marks would merge into a band."""
FLOOR_NATS = 1e-6
"""What logarithmic axes begin at; smaller values are drawn there."""


def _mark(steps: int) -> str:
    return "o" if steps <= MARKED_STEPS else ""


def _log10(nats: pl.Series) -> np.ndarray:
    return np.log10(np.maximum(nats.to_numpy().astype(np.float64), FLOOR_NATS))


def powers_of_ten(exponent: float, _: int) -> str:
    """Labels of an axis that shows exponents."""
    return f"$10^{{{exponent:g}}}$"


def training_curve(training_log: pl.DataFrame, path: str | Path) -> None:
    """The objective and its two parts over optimiser steps."""
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
    axis.set(xlabel="optimiser step", ylabel="nats a token", title="Training")
    axis.set_ylim(bottom=0)
    whole_steps(axis)
    if axis.lines:
        axis.legend(frameon=False)
    canvas.save(figure, path)


def training_curves(logs: Mapping[str, pl.DataFrame], path: str | Path) -> None:
    """Each model's objective, and its gradient norm, over optimiser steps."""
    figure, (left, right) = new_figure(3.6 + legend_height(len(logs)), columns=2)
    look = looks(logs)
    for name, log in logs.items():
        style = look[name] | {"marker": look[name]["marker"] if len(log) <= MARKED_STEPS else ""}
        for axis, column in ((left, "loss"), (right, "grad_norm")):
            axis.plot(log["step"], log[column], markersize=2.5, linewidth=1.2, label=name, **style)
    left.set(xlabel="optimiser step", ylabel="objective, nats a token")
    right.set(xlabel="optimiser step", ylabel="gradient norm before clipping")
    for axis in (left, right):
        whole_steps(axis)
    legend(figure, *left.get_legend_handles_labels())
    canvas.save(figure, path)


def loss_vs_bald(tokens: pl.DataFrame, analysis: pl.DataFrame, path: str | Path) -> None:
    """Hexagonal bins of the teacher's loss against BALD: of all tokens, and of each category, on one scale.

    `analysis` is the table `uncertainty_analysis`: each panel's correlations stand above it.
    """
    parts = {str(name): rows for (name,), rows in tokens.select("category", "loss", "bald").group_by("category")}
    present = [category for category in CATEGORY_COLOURS if category in parts]
    columns = min(1 + len(present), PANELS_A_ROW)
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
    """Spearman's of loss with BALD, and what is left of it given entropy."""
    rows = analysis.filter(split="all", category=category, x="loss", y="bald")
    values = dict(rows.select("method", "value").iter_rows())
    said = ["–" if values.get(name) is None else f"{values[name]:.2f}" for name in ("spearman", "partial_spearman")]
    return f"ρ {said[0]}, given entropy {said[1]}"


def selected_categories(curriculum: pl.DataFrame, path: str | Path) -> None:
    """Which categories the selected tokens are: shares as stacked areas over optimiser steps.

    A step is as wide as it lasts, so that a training of one step has its areas too; one that selected
    nothing stays empty.
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
        # Top of the stack first, as the eye meets it.
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    axis.set(xlabel="optimiser step", ylabel="share of selected tokens", ylim=(0, 1), title="What the selection takes")
    whole_steps(axis)
    canvas.save(figure, path)


def uncertainty_over_training(curriculum_uncertainty: pl.DataFrame, path: str | Path) -> None:
    """Loss and BALD of the fixed validation sample as training went on."""
    figure, (left, right) = new_figure(3.4, columns=2)
    rows = curriculum_uncertainty.filter(pl.col("category") == "all").sort("step")
    left.plot(rows["fraction"] * 100, rows["loss"], marker="o", color=LINE_COLOURS[0])
    left.set(xlabel="training done, %", ylabel="loss, nats a token", title="Loss of the validation sample")
    right.plot(rows["fraction"] * 100, rows["bald"], marker="o", color=LINE_COLOURS[1])
    right.set(xlabel="training done, %", ylabel="BALD, nats a token", title="Epistemic uncertainty")
    right.set_ylim(bottom=0)
    canvas.save(figure, path)


def id_vs_ood(evaluations: pl.DataFrame, path: str | Path) -> None:
    """Held-out loss in against out of distribution, with intervals and the Pareto front; one panel an OOD dataset.

    `evaluations` has `model, dataset, split, metric, value, ci_low, ci_high`.
    """
    losses = evaluations.filter(pl.col("metric") == "loss")
    inside = {row["model"]: row for row in losses.filter(pl.col("split") == "test").iter_rows(named=True)}
    outside = losses.filter(pl.col("split") == "ood")
    datasets = outside["dataset"].unique().sort().to_list()
    figure, axes = new_figure(4.2 + legend_height(len(inside)), columns=max(len(datasets), 1))
    look = looks(inside)
    for axis, dataset in zip(axes, datasets, strict=False):
        points = [
            (row["model"], inside[row["model"]], row)
            for row in outside.filter(pl.col("dataset") == dataset).iter_rows(named=True)
            if row["model"] in inside
        ]
        far = _far_away([(x["value"], y["value"]) for name, x, y in points if name != BASE_ROW])
        for name, x, y in points:
            if name == BASE_ROW and far(x["value"], y["value"]):
                # In the frame it would press all others into one corner.
                note = f"base is outside, at {x['value']:.2f}, {y['value']:.2f}"
                axis.set_title(note, loc="right", fontsize=7.5)
                continue
            _, _, bars = axis.errorbar(
                x["value"],
                y["value"],
                xerr=whiskers(x),
                yerr=whiskers(y),
                fmt=look[name]["marker"],
                color=look[name]["color"],
                markersize=5,
                elinewidth=0.8,
                label=name,
            )
            if len(points) > SIDE_ENTRIES:
                # Of many models the points tell, and not the thicket of their intervals.
                for bar in bars:
                    bar.set_alpha(0.25)
        front = _pareto_front([(x["value"], y["value"]) for _, x, y in points])
        if len(front) > 1:
            style = {"color": "#888888", "linestyle": "--", "linewidth": 1, "zorder": 0, "label": "Pareto front"}
            axis.step(*zip(*front, strict=True), where="post", **style)
            axis.plot(*zip(*front, strict=True), "o", markersize=11, fillstyle="none", color="#888888", zorder=0)
        axis.set(xlabel="loss on test, nats a token", ylabel=f"loss on {dataset}, nats a token")
        if len(points) > SIDE_ENTRIES:
            _frame_points(axis)
    for axis in axes[len(datasets) :]:
        axis.set(xlabel="loss on test, nats a token", ylabel="loss out of distribution, nats a token")
    figure.suptitle("Lower left is better")
    legend(figure, *axes[0].get_legend_handles_labels())
    canvas.save(figure, path)


def _frame_points(axis: Axes) -> None:
    """Limits that hold the points, with some room, and cut their intervals."""
    x, y = (np.array([getattr(bars.lines[0], f"get_{way}data")()[0] for bars in axis.containers]) for way in "xy")
    for values, limit in ((x, axis.set_xlim), (y, axis.set_ylim)):
        room = 0.12 * max(float(np.ptp(values)), 1e-3)
        limit(values.min() - room, values.max() + room)


def _far_away(points: list[tuple[float, float]]) -> Callable[[float, float], bool]:
    """Whether a point lies above the others by more than twice the room that they take, in either coordinate."""
    if len(points) < 2:
        return lambda x, y: False
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    return lambda x, y: bool((np.array([x, y]) > high + 2 * (high - low)).any())


def _pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other betters in both (lower is better), by the first coordinate."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
