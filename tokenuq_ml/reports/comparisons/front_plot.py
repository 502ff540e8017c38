"""The plot of fronts: one panel per plane, families as points with intervals in both directions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from tokenuq_ml.reports import canvas
from tokenuq_ml.reports.comparisons.study_families import Change, Panel

if TYPE_CHECKING:
    from tokenuq_ml.reports.comparisons.front import Point

PANELS_PER_ROW = 2
PANEL_INCHES = 3.0
FRAME = 1.6
"""Axes show the points with this much room around them; longer intervals are cut."""


def draw_planes(points: "Sequence[Point]", path: Path) -> None:
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
        _frame(axis, own)
        axis.set_title(study, fontsize=9)
        axis.set_xlabel(f"{plane.inside.label} (test){_sign(plane.inside)}", fontsize=7.5)
        axis.set_ylabel(f"{plane.outside.label} (ood){_sign(plane.outside)}", fontsize=7.5)
        axis.tick_params(labelsize=7)
    for axis in axes[len(planes) :]:
        axis.set_visible(False)
    canvas.legend(figure, list(handles.values()), list(handles))
    canvas.save(figure, path)


def _sign(panel: Panel) -> str:
    return "" if panel.higher_is_better else ", improvement = −difference"


def _improvement(panel: Panel, change: Change) -> tuple[float, list[list[float]]]:
    """Return a difference with its sign turned so that more is better, and the lengths of its whiskers."""
    below, above = max(change.value - change.low, 0.0), max(change.high - change.value, 0.0)
    return (change.value, [[below], [above]]) if panel.higher_is_better else (-change.value, [[above], [below]])


def _draw_point(axis: Axes, point: "Point", style: dict) -> object:
    x, x_error = _improvement(point.plane.inside, point.inside)
    y, y_error = _improvement(point.plane.outside, point.outside)
    marked = {key: style[key] for key in ("color", "marker")}
    bars = axis.errorbar(x, y, xerr=x_error, yerr=y_error, linestyle="", markersize=4.5, elinewidth=0.7, **marked)
    for bar in bars[2]:
        bar.set_alpha(0.45)
    if point.is_on_front:
        axis.plot(x, y, "o", markersize=10, fillstyle="none", color=style["color"], markeredgewidth=0.8)
    return bars


def _frame(axis: Axes, points: "Sequence[Point]") -> None:
    """Set limits around the points and 0, and shade where a family is no worse than the baseline."""
    for values, limit in (
        ([_improvement(point.plane.inside, point.inside)[0] for point in points], axis.set_xlim),
        ([_improvement(point.plane.outside, point.outside)[0] for point in points], axis.set_ylim),
    ):
        low, high = min(*values, 0.0), max(*values, 0.0)
        room = (FRAME - 1) / 2 * max(high - low, 1e-3)
        limit(low - room, high + room)
    (_, right), (_, top) = axis.get_xlim(), axis.get_ylim()
    axis.axhline(0, color="#888888", linewidth=0.8, zorder=0)
    axis.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    axis.fill_between([0, right], 0, top, color="#009e73", alpha=0.07, zorder=0, linewidth=0)
