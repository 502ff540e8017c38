"""What all plots share: size, palette, the style of each model, and how a PNG is written.

Uses matplotlib's objects, without global state.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from tokenuq_ml.config import BASE_ROW, TEACHER_ROW

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
SEQUENTIAL = ListedColormap(colormaps["Blues"](np.linspace(0.2, 1, 256)), "tokenuq")
"""One hue from pale to deep: readable on white, and on black when inverted."""
REFERENCE_COLOURS = {BASE_ROW: "#999999", TEACHER_ROW: "#000000"}
WIDTH_INCHES, DPI = 7.5, 120
PALETTE = 256
"""Colours of a PNG: a palette reduces its size to a third, and report pages have dozens."""
SIDE_ENTRIES, LEGEND_COLUMNS = 12, 4
"""A legend with more entries is placed below the axes, in columns."""


def new_figure(height: float = 4.0, columns: int = 1, rows: int = 1, shared: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of the common width, with a light grid and no frame at top and right, and its axes.

    Args:
        height: in inches.
        columns: axes per row.
        rows: rows of axes.
        shared: whether all axes have the same scale, with labels only at the outside.
    """
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, sharex=shared, sharey=shared, squeeze=False).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, path: str | Path) -> None:
    """Write the PNG; create its folder if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    image.quantize(PALETTE, dither=Image.Dither.NONE).save(path, format="PNG")


def series_styles(names: Iterable[str]) -> dict[str, dict]:
    """Return colour, marker and line style of each model; plots with the same students in the same order agree.

    Colours repeat after seven students, with another marker and line style.
    """
    styles = {name: {"color": colour, "marker": "o", "linestyle": "-"} for name, colour in REFERENCE_COLOURS.items()}
    for index, name in enumerate(name for name in names if name not in REFERENCE_COLOURS):
        repeat, place = divmod(index, len(LINE_COLOURS))
        styles[name] = {
            "color": LINE_COLOURS[place],
            "marker": MARKERS[repeat % len(MARKERS)],
            "linestyle": LINE_STYLES[repeat % len(LINE_STYLES)],
        }
    return styles


def whiskers(row: dict) -> list[list[float]]:
    """Return the distances to the interval's ends, at least 0: rounding may give -1e-17, which matplotlib refuses."""
    return [[max(row["value"] - row["ci_low"], 0.0)], [max(row["ci_high"] - row["value"], 0.0)]]


def integer_ticks(axis: Axes) -> None:
    """Use only whole numbers as ticks of the x axis."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_height(entries: int) -> float:
    """Return the inches that `legend` takes below the axes, to be added to the figure's height."""
    return 0.0 if entries <= SIDE_ENTRIES else 0.25 + 0.15 * -(-entries // LEGEND_COLUMNS)


def legend(figure: Figure, handles: list, labels: list[str]) -> None:
    """Draw one legend for all axes: to the right of them, or below them if it is long."""
    if len(labels) > SIDE_ENTRIES:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=LEGEND_COLUMNS,
            frameon=False,
            fontsize=7,
            columnspacing=1,
        )
    elif labels:
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
