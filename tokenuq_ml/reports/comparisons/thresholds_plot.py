"""The plot of thresholds: one row of panels per study, the difference to the baseline over the quantile."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from tokenuq_ml.reports import canvas
from tokenuq_ml.reports.comparisons.threshold_curves import Threshold

ROW_INCHES = 2.3
SHIFT = 0.008
"""Points of several objectives at one quantile are drawn next to each other, so that no interval hides another."""


def draw_curves(found: Sequence[Threshold], path: Path) -> None:
    """Draw a row of panels per study, in distribution first; above 0 is better.

    Args:
        found: the quantiles of every curve, with the baseline as 1.
        path: the PNG.
    """
    studies = list(dict.fromkeys(one.study for one in found))
    panels = {study: list(dict.fromkeys(one.panel for one in found if one.study == study)) for study in studies}
    columns = max(map(len, panels.values()))
    figure, axes = canvas.new_figure(0.4 + ROW_INCHES * len(studies), columns, len(studies))
    curves = list(dict.fromkeys(one.curve for one in found))
    styles = canvas.series_styles(curves)
    for row, study in enumerate(studies):
        own_axes = axes[row * columns : (row + 1) * columns]
        for axis, panel in zip(own_axes, panels[study], strict=False):
            axis.axhline(0, color="#555555", linestyle="--", linewidth=1)
            for place, curve in enumerate(curves):
                own = [one for one in found if (one.study, one.panel, one.curve) == (study, panel, curve)]
                _draw(axis, own, curve, SHIFT * (place - (len(curves) - 1) / 2), styles[curve])
            axis.set_title(f"{study}: {panel.label} ({panel.split})", fontsize=7.5)
            axis.set_xlim(0, 1.02)
            axis.tick_params(labelsize=7)
        own_axes[0].set_ylabel("improvement", fontsize=8)
        for axis in own_axes[len(panels[study]) :]:
            axis.set_visible(False)
    figure.supxlabel("selected share of tokens", fontsize=8)
    canvas.legend(figure, *axes[0].get_legend_handles_labels())
    canvas.save(figure, path)


def _draw(axis: Axes, own: Sequence[Threshold], curve: str, aside: float, style: dict) -> None:
    if not own:
        return
    improvements = [one.panel.improvement(one.to_baseline) for one in own]
    axis.errorbar(
        [one.quantile + (aside if one.quantile < 1 else 0.0) for one in own],
        [value for value, _, _ in improvements],
        yerr=[[below for _, below, _ in improvements], [above for _, _, above in improvements]],
        label=curve,
        linewidth=1.3,
        markersize=3.5,
        elinewidth=0.8,
        capsize=2,
        **style,
    )
