"""What all pictures share: size, palette, one look a model, how a PNG is written.

Draws with matplotlib's objects and no global state. Knows no table.
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

# Okabe and Ito's palette, told apart by colour-blind readers.
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
SEQUENTIAL = ListedColormap(colormaps["Blues"](np.linspace(0.2, 1, 256)), "tokenuq")
"""One hue from pale to deep: it reads on white, and turned over on black."""
REFERENCE_COLOURS = {BASE_ROW: "#999999", TEACHER_ROW: "#000000"}
WIDTH_INCHES, DPI = 7.5, 120
PALETTE = 256
"""Colours of a PNG: a palette makes it a third as large, and report pages carry dozens."""
SIDE_ENTRIES, LEGEND_COLUMNS = 12, 4
"""A longer legend goes below the axes, in columns."""


def new_figure(height: float = 4.0, columns: int = 1, rows: int = 1, shared: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of the common width with axes side by side, light grid, no frame at top and right.

    With `shared`, all axes have one scale, and labels at the outside alone.
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
    """Write the PNG; folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    image.quantize(PALETTE, dither=Image.Dither.NONE).save(path, format="PNG")


def looks(names: Iterable[str]) -> dict[str, dict]:
    """Colour, marker and line style of each model, the same in every plot that shows the same students in this order.

    Colours come round after seven students; then marker and line style are others.
    """
    chosen = {name: {"color": colour, "marker": "o", "linestyle": "-"} for name, colour in REFERENCE_COLOURS.items()}
    for index, name in enumerate(name for name in names if name not in REFERENCE_COLOURS):
        turn, place = divmod(index, len(LINE_COLOURS))
        chosen[name] = {
            "color": LINE_COLOURS[place],
            "marker": MARKERS[turn % len(MARKERS)],
            "linestyle": LINE_STYLES[turn % len(LINE_STYLES)],
        }
    return chosen


def whiskers(row: dict) -> list[list[float]]:
    """Distances to the interval's ends; matplotlib refuses the -1e-17 that rounding may leave."""
    return [[max(row["value"] - row["ci_low"], 0.0)], [max(row["ci_high"] - row["value"], 0.0)]]


def whole_steps(axis: Axes) -> None:
    """Only whole numbers as ticks of the x axis."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_height(entries: int) -> float:
    """Inches that `legend` takes below the axes, to be added to the figure's height."""
    return 0.0 if entries <= SIDE_ENTRIES else 0.25 + 0.15 * -(-entries // LEGEND_COLUMNS)


def legend(figure: Figure, handles: list, labels: list[str]) -> None:
    """One legend for all axes: at their right, or below them where it is long."""
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
