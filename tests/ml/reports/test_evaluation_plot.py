"""The plot of an evaluation: each metric is drawn at its value, with its interval."""

import polars as pl

from tokenuq_ml.reports.evaluation_plot import metric_intervals


def frame(shift=0.0, null=False):
    rows = [("d", "test", "loss", 1.5, 1.0, 2.0), ("d", "test", "token_accuracy", 0.5, 0.4, 0.7)]
    rows.append(("o", "ood", "win_rate", None if null else 0.25, None if null else 0.0, None if null else 0.5))
    names = ("dataset", "split", "metric", "value", "ci_low", "ci_high")
    return pl.DataFrame(rows, schema=names, orient="row").with_columns(pl.col("value") + shift)


def points(axis):
    return sorted(float(container.lines[0].get_xdata()[0]) for container in axis.containers)


def test_nats_and_shares_have_a_panel_each(drawn, tmp_path):
    metric_intervals({"student": frame()}, tmp_path / "m.png")
    nats, shares = drawn[0].axes
    assert points(nats) == [1.5] and points(shares) == [0.25, 0.5]
    assert [label.get_text() for label in shares.get_yticklabels()] == ["d\ntoken_accuracy", "o\nwin_rate"]
    (segment,) = nats.containers[0].lines[2][0].get_segments()
    assert [float(x) for x, _ in segment] == [1.0, 2.0]
    assert (tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG"


def test_two_models_are_drawn_next_to_each_other_with_a_legend(drawn, tmp_path):
    metric_intervals({"base": frame(), "teacher": frame(0.1)}, tmp_path / "m.png")
    assert points(drawn[0].axes[0]) == [1.5, 1.6]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["base", "teacher"]
    heights = [float(container.lines[0].get_ydata()[0]) for container in drawn[0].axes[0].containers]
    assert heights[0] != heights[1]


def test_a_metric_without_a_value_is_not_drawn(drawn, tmp_path):
    metric_intervals({"student": frame(null=True)}, tmp_path / "m.png")
    assert points(drawn[0].axes[1]) == [0.5]


def test_divergences_are_in_nats_and_those_of_slots_are_not_drawn(drawn, tmp_path):
    more = frame().with_columns(metric=pl.Series(["true_kl", "true_kl_fact", "clean_kl_choice"]))
    metric_intervals({"student": pl.concat([frame(), more])}, tmp_path / "m.png")
    nats, shares = drawn[0].axes
    assert points(nats) == [1.5, 1.5] and points(shares) == [0.25, 0.5]
    assert [label.get_text() for label in nats.get_yticklabels()] == ["d\nloss", "d\ntrue_kl"]
