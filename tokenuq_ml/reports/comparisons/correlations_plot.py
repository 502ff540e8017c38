"""The plot of correlations: one line per study, one mark with its interval per correlation."""

from collections.abc import Sequence
from pathlib import Path

from tokenuq_ml.reports import canvas
from tokenuq_ml.reports.comparisons.found_correlation import Found

STUDY_INCHES, AROUND_INCHES = 0.5, 1.0
SHIFT = 0.16
"""Marks of one study are drawn below each other, so that no interval hides another."""


def draw_correlations(found: Sequence[Found], names: Sequence[str], path: Path) -> None:
    """Draw the correlations of all studies; those that are not defined are left out.

    Args:
        found: the correlations.
        names: those that are drawn.
        path: the PNG.
    """
    studies = list(dict.fromkeys(one.study for one in found))
    figure, (axis,) = canvas.new_figure(AROUND_INCHES + STUDY_INCHES * len(studies))
    styles = canvas.series_styles(names)
    for place, name in enumerate(names):
        own = [one for one in found if one.name == name and one.value is not None]
        offset = SHIFT * (place - (len(names) - 1) / 2)
        for one in own:
            assert one.value is not None
            low, high = (one.value if end is None else end for end in (one.low, one.high))
            axis.errorbar(
                [one.value],
                [studies.index(one.study) + offset],
                xerr=[[max(one.value - low, 0.0)], [max(high - one.value, 0.0)]],
                label=name if one is own[0] else None,
                markersize=4,
                elinewidth=0.9,
                capsize=2,
                **{**styles[name], "linestyle": "none"},
            )
    axis.axvline(0, color="#555555", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(studies)), studies, fontsize=7.5)
    axis.set_ylim(len(studies) - 0.5, -0.5)
    axis.set_xlabel("rank correlation over tokens", fontsize=8)
    canvas.legend(figure, *axis.get_legend_handles_labels())
    canvas.save(figure, path)
