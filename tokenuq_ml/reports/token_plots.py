"""Plots of the token tables for the UI: losses by category, and the distribution of uncertainty.

The tables are read lazily and summed up, so that memory does not grow with the tokens.
"""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tokenuq_ml.reports import canvas
from tokenuq_ml.reports.canvas import LINE_COLOURS, new_figure
from tokenuq_ml.reports.plots import CATEGORY_COLOURS, FLOOR_NATS, powers_of_ten

BINS_PER_DECADE = 8


def losses_by_category(token_losses: pl.LazyFrame, path: str | Path) -> None:
    """Draw the mean loss of each category, under the base model and under the teacher."""
    means = (
        token_losses.group_by(pl.col("category").cast(pl.String))
        .agg(pl.len().alias("tokens"), pl.col("loss", "base_loss").mean())
        .collect(engine="streaming")
    )
    rows = {row["category"]: row for row in means.iter_rows(named=True)}
    shown = [rows[category] for category in CATEGORY_COLOURS if category in rows][::-1]
    figure, (axis,) = new_figure(3.4)
    heights = range(len(shown))
    axis.hlines(heights, [row["loss"] for row in shown], [row["base_loss"] for row in shown], color="#bbbbbb")
    for column, label, colour in (("base_loss", "base model", "#999999"), ("loss", "teacher", LINE_COLOURS[0])):
        axis.plot([row[column] for row in shown], heights, "o", color=colour, label=label)
    axis.set_yticks(heights, [f"{row['category']} ({row['tokens']:,})" for row in shown])
    axis.set(xlabel="mean loss, nats per token", title="Loss by token category")
    axis.set_xlim(left=0)
    axis.legend(frameon=False)
    canvas.save(figure, path)


def uncertainty_spread(token_uncertainty: pl.LazyFrame, path: str | Path) -> None:
    """Draw histograms of epistemic (BALD) and aleatoric uncertainty over decades of nats."""
    figure, (axis,) = new_figure(3.4)
    parts = (("bald", "epistemic (BALD)", LINE_COLOURS[1]), ("expected_entropy", "aleatoric", LINE_COLOURS[0]))
    for column, label, colour in parts:
        exponent = pl.col(column).cast(pl.Float64).clip(lower_bound=FLOOR_NATS).log10()
        bins = token_uncertainty.select((exponent * BINS_PER_DECADE).floor().cast(pl.Int32).alias("bin"))
        counts = dict(bins.group_by("bin").len().collect(engine="streaming").iter_rows())
        edges = np.arange(min(counts, default=0), max(counts, default=0) + 2)
        heights = [counts.get(int(edge), 0) for edge in edges[:-1]]
        axis.stairs(heights, edges / BINS_PER_DECADE, fill=True, alpha=0.5, color=colour, label=label)
    axis.set(xlabel="nats", ylabel="tokens", title="Uncertainty of the response tokens")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(powers_of_ten))
    axis.legend(frameon=False)
    canvas.save(figure, path)
