"""Heat maps of a phase diagram: one PNG per family, with its change in and out of distribution."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from tokenuq_ml.advice.verdicts import BEATS, UNDECIDED
from tokenuq_ml.reports import canvas
from tokenuq_ml.reports.comparisons.phase_cells import PhaseCell

COLOURS = "RdBu_r"
"""Diverging: blue where less divergence than the baseline, red where more; white is no difference."""
HEIGHT_INCHES = 3.3


def draw_family(cells: Sequence[PhaseCell], largest: tuple[float, float], path: Path) -> None:
    """Draw a family's heat maps: in distribution to the left, out of it to the right.

    Cells where the family beats the baseline have a frame; those that are undecided are hatched.

    Args:
        cells: of one family.
        largest: the largest change of any family in and out of distribution: maps of one page share their colours.
        path: the PNG.
    """
    figure, axes = canvas.new_figure(HEIGHT_INCHES, columns=2)
    titles = "in distribution", "out of distribution"
    for axis, title, field, limit in zip(axes, titles, ("inside", "outside"), largest, strict=True):
        _draw(axis, cells, field, max(limit, 1e-6))
        axis.set_title(title, fontsize=9)
        figure.colorbar(axis.images[0], ax=axis, shrink=0.85, format="%+.2g").ax.tick_params(labelsize=7)
    canvas.save(figure, path)


def _draw(axis: Axes, cells: Sequence[PhaseCell], field: str, limit: float) -> None:
    noises, zipfs = sorted({cell.noise for cell in cells}), sorted({cell.zipf for cell in cells})
    change_NZ = np.full((len(noises), len(zipfs)), np.nan)
    axis.grid(False)
    for cell in cells:
        row, column = noises.index(cell.noise), zipfs.index(cell.zipf)
        value, low, high = getattr(cell, field)
        change_NZ[row, column] = value
        sure = "" if low <= 0 <= high else "*"
        # Blue and red are dark at their ends.
        colour = "white" if abs(value) > 0.6 * limit else "black"
        axis.text(column, row, f"{value:+.3f}{sure}", ha="center", va="center", fontsize=6.5, color=colour, zorder=4)
        corner = (column - 0.5, row - 0.5)
        if cell.verdict == BEATS:
            axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=2, zorder=3))
        elif cell.verdict == UNDECIDED:
            hatched = Rectangle(
                corner, 1, 1, fill=False, edgecolor="#888888", linewidth=0, hatch="//", alpha=0.5, zorder=2
            )
            axis.add_patch(hatched)
    axis.imshow(change_NZ, cmap=COLOURS, vmin=-limit, vmax=limit, origin="lower", aspect="auto")
    axis.set_xticks(range(len(zipfs)), [f"{value:g}" for value in zipfs], fontsize=7)
    axis.set_yticks(range(len(noises)), [f"{value:g}" for value in noises], fontsize=7)
    axis.set_xlabel("exponent of Zipf's law: rarer keys to the right", fontsize=7.5)
    axis.set_ylabel("label noise", fontsize=7.5)
