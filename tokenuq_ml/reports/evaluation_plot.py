"""The metrics of one or several models as points with intervals: the plot of an evaluation in the UI."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from tokenuq_ml.evaluation.held_out import DIVERGENCES
from tokenuq_ml.evaluation.metrics import IS_OF_SLOT
from tokenuq_ml.reports import canvas

TITLE = "Metrics with intervals"
IN_NATS = ("loss", "loss_change", "entropy_change", *DIVERGENCES)


def metric_intervals(models: Mapping[str, pl.DataFrame], path: str | Path) -> None:
    """Draw one line per metric and dataset; metrics in nats on the left, shares on the right. Slots are left out.

    Args:
        models: name -> rows of `evaluations` (`dataset, split, metric, value, ci_low, ci_high`).
        path: the PNG.
    """
    rows = pl.concat([frame.with_columns(model=pl.lit(name)) for name, frame in models.items()])
    rows = rows.filter(~IS_OF_SLOT)
    in_nats = pl.col("metric").is_in(IN_NATS)
    panels = [(rows.filter(in_nats), "nats per token"), (rows.filter(~in_nats), "share")]
    panels = [(part, label) for part, label in panels if len(part)]
    lines = max((part.n_unique(["dataset", "metric"]) for part, _ in panels), default=1)
    figure, axes = canvas.new_figure(1.0 + 0.3 * lines, columns=max(len(panels), 1))
    styles = canvas.series_styles(models)
    for axis, (part, label) in zip(axes, panels, strict=False):
        order = ["split", "dataset", "metric"]
        # In-distribution metrics come first.
        names = part.select(order).unique().sort(order, descending=[True, False, False]).rows()
        places = {name: -number for number, name in enumerate(names)}
        for number, model in enumerate(models):
            shift = 0.25 * (number - (len(models) - 1) / 2)
            own = part.filter(pl.col("model") == model).drop_nulls("value")
            for row in own.iter_rows(named=True):
                axis.errorbar(
                    row["value"],
                    places[row["split"], row["dataset"], row["metric"]] - shift,
                    xerr=canvas.whiskers(row),
                    fmt=styles[model]["marker"],
                    color=styles[model]["color"],
                    markersize=5,
                    label=model,
                )
        axis.set_yticks(list(places.values()), [f"{dataset}\n{metric}" for _, dataset, metric in places], fontsize=6.5)
        axis.set_xlabel(label)
    if len(models) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        first = dict(zip(labels, handles, strict=True))
        canvas.legend(figure, list(first.values()), list(first))
    canvas.save(figure, path)
