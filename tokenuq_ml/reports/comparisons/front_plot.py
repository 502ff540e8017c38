"""The plot of fronts: one panel per plane, families as points with intervals in both directions."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from tokenuq_ml.reports import canvas
from tokenuq_ml.reports.comparisons.front_points import Point
from tokenuq_ml.reports.comparisons.study_families import Panel

PANELS_PER_ROW = 2
PANEL_INCHES = 3.0
FRAME = 1.6
"""Axes show the points with this much room around them; longer intervals are cut."""


def draw_planes(points: Sequence[Point], path: Path) -> None:
    """Draw the differences to the baseline of every plane; up and right is better.

    Args:
        points: of one or more planes; the baseline is at 0 in each.
        path: the PNG.
    """
    planes = list(dict.fromkeys((point.study, point.plane) for point in points))
    families = list(dict.fromkeys(point.family for point in points))
    styles = canvas.series_styles(families)
    columns = min(len(planes), PANELS_PER_ROW)
    rows = -(-len(planes) // columns)
    figure, axes = canvas.new_figure(0.3 + PANEL_INCHES * rows + canvas.legend_height(len(families)), columns, rows)
    handles: dict[str, object] = {}
    for axis, (study, plane) in zip(axes, planes, strict=False):
        own = [point for point in points if (point.study, point.plane) == (study, plane)]
        for point in own:
            handles.setdefault(point.family, _draw_point(axis, point, styles[point.family]))
        _draw_front_of_means(axis, own)
        _frame(axis, own)
        axis.set_title(study, fontsize=9)
        axis.set_xlabel(f"{_way(plane.inside)} {plane.inside.label} (test)", fontsize=7.5)
        axis.set_ylabel(f"{_way(plane.outside)} {plane.outside.label} (ood)", fontsize=7.5)
        axis.tick_params(labelsize=7)
        # More numbers of four digits run into each other.
        axis.locator_params(axis="x", nbins=5)
    for axis in axes[len(planes) :]:
        axis.set_visible(False)
    canvas.legend(figure, list(handles.values()), list(handles))
    canvas.save(figure, path)


def _way(panel: Panel) -> str:
    return "rise of" if panel.higher_is_better else "fall of"


def _draw_point(axis: Axes, point: Point, style: dict) -> object:
    x, left, right = point.plane.inside.improvement(point.inside)
    y, down, up = point.plane.outside.improvement(point.outside)
    bars = axis.errorbar(
        x,
        y,
        xerr=[[left], [right]],
        yerr=[[down], [up]],
        linestyle="",
        markersize=4.5,
        elinewidth=0.7,
        color=style["color"],
        marker=style["marker"],
    )
    for bar in bars[2]:
        bar.set_alpha(0.45)
    if point.is_on_front:
        axis.plot(x, y, "o", markersize=10, fillstyle="none", color=style["color"], markeredgewidth=0.8)
    return bars


def _draw_front_of_means(axis: Axes, points: Sequence[Point]) -> None:
    places = [
        (point.plane.inside.improvement(point.inside)[0], point.plane.outside.improvement(point.outside)[0])
        for point in points
        if point.is_on_front_of_means
    ]
    x, y = zip(*sorted(places), strict=True)
    axis.plot(x, y, color="#888888", linewidth=0.9, linestyle=":", zorder=0)


def _frame(axis: Axes, points: Sequence[Point]) -> None:
    """Set limits around the points and 0, and shade where a family is no worse than the baseline."""
    for values, limit in (
        ([point.plane.inside.improvement(point.inside)[0] for point in points], axis.set_xlim),
        ([point.plane.outside.improvement(point.outside)[0] for point in points], axis.set_ylim),
    ):
        low, high = min(*values, 0.0), max(*values, 0.0)
        room = (FRAME - 1) / 2 * max(high - low, 1e-3)
        limit(low - room, high + room)
    (_, right), (_, top) = axis.get_xlim(), axis.get_ylim()
    axis.axhline(0, color="#888888", linewidth=0.8, zorder=0)
    axis.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    axis.fill_between([0, right], 0, top, color="#009e73", alpha=0.07, zorder=0, linewidth=0)
