"""Pictures of the tables: one function a plot, a frame in, a PNG out.

Draws with matplotlib's objects and no global state. Knows the tables' columns; computes
nothing that a reader could not check from them.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; one colour a category in every plot.
CATEGORY_COLOURS = {
    "special": "#000000",
    "whitespace": "#bbbbbb",
    "punctuation": "#56b4e9",
    "number": "#d55e00",
    "word": "#0072b2",
    "subword": "#009e73",
    "code": "#cc79a7",
}
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
WIDTH_INCHES, DPI = 7.5, 120


def _figure(height: float = 4.0, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor="white")


def training_curve(training_log: pl.DataFrame, path: str | Path) -> None:
    """The objective and its two parts over optimiser steps."""
    figure, (axis,) = _figure(3.4)
    parts = (
        ("loss", "objective", 2.0),
        ("mle_loss", "cross-entropy of tokens trained by MLE", 1.2),
        ("distill_loss", "divergence of distilled tokens", 1.2),
    )
    for (column, label, width), colour in zip(parts, LINE_COLOURS, strict=False):
        rows = training_log.filter(pl.col(column).is_not_null())
        same = column == "mle_loss" and rows["mle_loss"].equals(rows["loss"].alias("mle_loss"))
        if len(rows) and not same:
            axis.plot(rows["step"], rows[column], marker="o", markersize=3, linewidth=width, color=colour, label=label)
    axis.set(xlabel="optimiser step", ylabel="nats a token", title="Training")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    _save(figure, path)


def training_curves(logs: Mapping[str, pl.DataFrame], path: str | Path) -> None:
    """Cross-entropy of the tokens that each model trained by MLE, and its gradient norm, over steps."""
    figure, (left, right) = _figure(3.6, columns=2)
    for (name, log), colour in zip(logs.items(), LINE_COLOURS * len(logs), strict=False):
        left.plot(log["step"], log["loss"], marker="o", markersize=2.5, linewidth=1.3, color=colour, label=name)
        right.plot(log["step"], log["grad_norm"], marker="o", markersize=2.5, linewidth=1.3, color=colour, label=name)
    left.set(xlabel="optimiser step", ylabel="objective, nats a token")
    right.set(xlabel="optimiser step", ylabel="gradient norm before clipping")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    _save(figure, path)


def loss_vs_bald(tokens: pl.DataFrame, path: str | Path) -> None:
    """Hexagonal bins of the teacher's loss against BALD, and BALD by category."""
    figure, (left, right) = _figure(3.8, columns=2)
    floor = 1e-6
    loss = np.log10(np.maximum(tokens["loss"].to_numpy(), floor))
    bald = np.log10(np.maximum(tokens["bald"].to_numpy(), floor))
    bins = left.hexbin(loss, bald, gridsize=32, bins="log", cmap="viridis", mincnt=1, linewidths=0.1)
    figure.colorbar(bins, ax=left, label="tokens")
    spearman = tokens.select(pl.corr("loss", "bald", method="spearman")).item()
    left.set(
        xlabel="loss, log10 nats",
        ylabel="BALD, log10 nats",
        title="Spearman not defined" if spearman is None or np.isnan(spearman) else f"Spearman {spearman:.2f}",
    )
    present = [c for c in CATEGORY_COLOURS if tokens.filter(pl.col("category").cast(pl.String) == c).height]
    values = [
        np.log10(np.maximum(tokens.filter(pl.col("category").cast(pl.String) == c)["bald"].to_numpy(), floor))
        for c in present
    ]
    boxes = right.boxplot(
        values, orientation="horizontal", patch_artist=True, showfliers=False, medianprops={"color": "white"}
    )
    for box, category in zip(boxes["boxes"], present, strict=True):
        box.set(facecolor=CATEGORY_COLOURS[category], edgecolor="#444444")
    right.set_yticks(range(1, len(present) + 1), [f"{c} ({len(v):,})" for c, v in zip(present, values, strict=True)])
    right.set(xlabel="BALD, log10 nats", title="By token category")
    _save(figure, path)


def selected_categories(curriculum: pl.DataFrame, path: str | Path) -> None:
    """Which categories the selected tokens are, as shares, over optimiser steps."""
    figure, (axis,) = _figure(3.6)
    steps = curriculum["step"].unique().sort().to_list()
    counts = {
        category: [
            curriculum.filter((pl.col("step") == step) & (pl.col("category") == category))["n_selected"].sum()
            for step in steps
        ]
        for category in CATEGORY_COLOURS
    }
    totals = np.maximum(np.sum(list(counts.values()), axis=0), 1)
    shares = {category: np.array(values) / totals for category, values in counts.items() if sum(values)}
    if len(steps) > 40 and shares:
        axis.stackplot(steps, *shares.values(), labels=list(shares), colors=[CATEGORY_COLOURS[c] for c in shares])
    else:
        bottom = np.zeros(len(steps))
        for category, share in shares.items():
            axis.bar(steps, share, bottom=bottom, width=0.9, color=CATEGORY_COLOURS[category], label=category)
            bottom += share
    axis.set(xlabel="optimiser step", ylabel="share of selected tokens", ylim=(0, 1), title="What the selection takes")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if shares:
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, path)


def uncertainty_over_training(curriculum_uncertainty: pl.DataFrame, path: str | Path) -> None:
    """Loss and BALD of the fixed validation sample as training went on."""
    figure, (left, right) = _figure(3.4, columns=2)
    rows = curriculum_uncertainty.filter(pl.col("category") == "all").sort("step")
    left.plot(rows["fraction"] * 100, rows["loss"], marker="o", color=LINE_COLOURS[0])
    left.set(xlabel="training done, %", ylabel="loss, nats a token", title="Loss of the validation sample")
    right.plot(rows["fraction"] * 100, rows["bald"], marker="o", color=LINE_COLOURS[1])
    right.set(xlabel="training done, %", ylabel="BALD, nats a token", title="Epistemic uncertainty")
    right.set_ylim(bottom=0)
    _save(figure, path)


def id_vs_ood(evaluations: pl.DataFrame, path: str | Path) -> None:
    """Held-out loss in against out of distribution, with intervals and the Pareto front."""
    figure, (axis,) = _figure(4.2)
    losses = evaluations.filter(pl.col("metric") == "loss")
    points = []
    for (name,), rows in losses.group_by("ablation", maintain_order=True):
        inside, outside = rows.filter(pl.col("split") == "test"), rows.filter(pl.col("split") == "ood")
        if len(inside) and len(outside):
            points.append((name, inside.row(0, named=True), outside.sort("dataset").row(0, named=True)))
    for (name, x, y), colour in zip(points, LINE_COLOURS * len(points), strict=False):
        axis.errorbar(
            x["value"],
            y["value"],
            xerr=[[x["value"] - x["ci_low"]], [x["ci_high"] - x["value"]]],
            yerr=[[y["value"] - y["ci_low"]], [y["ci_high"] - y["value"]]],
            fmt="o",
            color=colour,
            ecolor=colour,
            elinewidth=0.8,
            alpha=0.9,
            label=name,
        )
    places = sorted((x["value"], y["value"]) for _, x, y in points)
    front = [place for i, place in enumerate(places) if all(place[1] < other[1] for other in places[:i])]
    if len(front) > 1:
        axis.step(
            *zip(*front, strict=True),
            where="post",
            color="#888888",
            linestyle="--",
            linewidth=1,
            zorder=0,
            label="Pareto front",
        )
    axis.set(
        xlabel="loss in distribution (test), nats a token",
        ylabel="loss out of distribution, nats a token",
        title="Lower left is better",
    )
    if points:
        axis.legend(frameon=False, fontsize=8)
    _save(figure, path)
