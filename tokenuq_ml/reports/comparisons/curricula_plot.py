"""The plot of what a family selects over time: one row per study, one line per token category."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenuq_ml.reports import canvas

if TYPE_CHECKING:
    from tokenuq_ml.reports.comparisons.selected_over_time import Selected

ROW_INCHES, AROUND_INCHES = 2.4, 0.4


def draw_selections(selected: "Sequence[Selected]", path: Path) -> None:
    """Draw the selected share of each category by quarters of the training; `all` is dashed.

    Args:
        selected: the categories of all studies.
        path: the PNG.
    """
    studies = list(dict.fromkeys(one.study for one in selected))
    figure, axes = canvas.new_figure(AROUND_INCHES + ROW_INCHES * len(studies), 1, len(studies))
    categories = list(dict.fromkeys(one.category for one in selected))
    styles = canvas.series_styles(categories)
    handles = {}
    for axis, study in zip(axes, studies, strict=True):
        for one in (one for one in selected if one.study == study):
            style = {
                **styles[one.category],
                **({"linestyle": "--", "color": "#555555"} if one.category == "all" else {}),
            }
            quarters = range(1, len(one.shares) + 1)
            (handles[one.category],) = axis.plot(quarters, one.shares, label=one.category, markersize=3.5, **style)
        axis.set_title(study, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("selected share", fontsize=8)
        canvas.integer_ticks(axis)
    axes[-1].set_xlabel("quarter of the training", fontsize=8)
    canvas.legend(figure, list(handles.values()), list(handles))
    canvas.save(figure, path)
