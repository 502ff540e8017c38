"""Plots of tables, with edge cases: one step, nothing selected, constants, no tokens, many models."""

import numpy as np
import polars as pl
import pytest

from tests.support import tiny_tables
from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.reports import plots, token_plots
from tokenuq_ml.scoring.correlations import correlation_table
from tokenuq_ml.stages.correlate import joined_tokens

pytestmark = pytest.mark.slow


@pytest.fixture
def tokens():
    return joined_tokens(*tiny_tables.losses_and_uncertainty())


def analysis(tokens):
    return correlation_table(tokens, EvaluationSpec(bootstrap=10))


def check_png(path):
    data = path.read_bytes()
    width = int.from_bytes(data[16:20], "big")
    assert data.startswith(b"\x89PNG") and len(data) < 200_000 and 800 <= width <= 1000


def reference_and_students(**losses) -> pl.DataFrame:
    return pl.concat(
        [
            tiny_tables.evaluations(loss, 0.1, ood=("far", "farther")).with_columns(model=pl.lit(name))
            for name, loss in losses.items()
        ]
    )


@pytest.mark.parametrize("steps", [1, 6, 300])
def test_curves_and_selections_of_any_length(tmp_path, steps):
    plots.training_curve(tiny_tables.training_log(steps), tmp_path / "new" / "a.png")
    plots.training_curves({name: tiny_tables.training_log(steps) for name in "abcdefghij"}, tmp_path / "b.png")
    plots.selected_categories(tiny_tables.curriculum(steps), tmp_path / "c.png")
    for path in ("new/a.png", "b.png", "c.png"):
        check_png(tmp_path / path)


def test_empty_frames_give_empty_plots(tmp_path, tokens):
    plots.training_curve(tiny_tables.training_log().clear(), tmp_path / "a.png")
    plots.training_curves({}, tmp_path / "b.png")
    plots.selected_categories(tiny_tables.curriculum(selected=0), tmp_path / "c.png")
    plots.selected_categories(tiny_tables.curriculum().clear(), tmp_path / "d.png")
    plots.uncertainty_over_training(tiny_tables.curriculum_uncertainty().clear(), tmp_path / "e.png")
    plots.loss_vs_bald(tokens.clear(), analysis(tokens.clear()), tmp_path / "f.png")
    plots.id_vs_ood(reference_and_students(base=1.0).clear(), tmp_path / "g.png")
    token_plots.losses_by_category(tokens.clear().lazy(), tmp_path / "h.png")
    token_plots.uncertainty_spread(tokens.clear().lazy(), tmp_path / "i.png")
    for name in "abcdefghi":
        check_png(tmp_path / f"{name}.png")


@pytest.mark.parametrize("columns", [["bald"], ["loss", "bald"]])
@pytest.mark.parametrize("constant", [0.0, 0.5])
def test_constant_uncertainty_is_drawn(tmp_path, drawn, tokens, columns, constant):
    tokens = tokens.with_columns(pl.lit(constant).alias(name) for name in columns)
    plots.loss_vs_bald(tokens, analysis(tokens), tmp_path / "a.png")
    token_plots.uncertainty_spread(tokens.lazy(), tmp_path / "b.png")
    check_png(tmp_path / "a.png")
    check_png(tmp_path / "b.png")
    assert drawn[0].axes[0].get_title() == f"all ({len(tokens)})\nρ –, given entropy –"


def test_each_category_has_a_panel_with_its_tokens_and_correlations(tmp_path, drawn, tokens):
    table = analysis(tokens)
    plots.loss_vs_bald(tokens, table, tmp_path / "a.png")
    check_png(tmp_path / "a.png")
    panels = [axis for axis in drawn[0].axes if axis.get_title()]
    assert [axis.get_title().split(" ")[0] for axis in panels] == ["all", *plots.CATEGORY_COLOURS]
    for axis in panels:
        name = axis.get_title().split(" ")[0]
        part = tokens if name == "all" else tokens.filter(category=name)
        assert axis.collections[0].get_array().sum() == len(part)
        spearman = part.select(pl.corr("loss", "bald", method="spearman")).item()
        assert f"({len(part)})\nρ {spearman:.2f}, given entropy " in axis.get_title()
    assert len({axis.collections[0].norm for axis in panels}) == 1


def test_token_plots_draw_all_tokens(tmp_path, drawn, tokens):
    token_plots.losses_by_category(tokens.with_columns(base_loss=pl.col("loss") + 1).lazy(), tmp_path / "a.png")
    token_plots.uncertainty_spread(tokens.lazy(), tmp_path / "b.png")
    check_png(tmp_path / "b.png")
    base, teacher = drawn[0].axes[0].lines
    means = dict(tokens.group_by("category").agg(pl.col("loss").mean()).iter_rows())
    expected = [means[name] for name in plots.CATEGORY_COLOURS][::-1]
    assert teacher.get_xdata().tolist() == pytest.approx(expected)
    assert base.get_xdata().tolist() == pytest.approx([value + 1 for value in expected])
    for steps in drawn[1].axes[0].patches:
        assert steps.get_data().values.sum() == len(tokens)


def test_one_token_is_drawn(tmp_path, tokens):
    plots.loss_vs_bald(tokens.head(1), analysis(tokens.head(1)), tmp_path / "a.png")
    check_png(tmp_path / "a.png")


@pytest.mark.parametrize("steps", [6, 80])
def test_shares_add_up_to_one_where_tokens_are_selected(tmp_path, drawn, steps):
    rows = tiny_tables.curriculum(steps).with_columns(
        n_selected=pl.when(step=1).then(0).when(category="number").then(6).otherwise(pl.col("n_selected"))
    )
    plots.selected_categories(rows, tmp_path / "a.png")
    (axis,) = drawn[0].axes
    assert len(axis.get_legend().get_texts()) == len(tiny_tables.CATEGORIES)
    tops = axis.collections[-1].get_paths()[0].vertices
    assert tops[tops[:, 0] > 1.5, 1].max() == pytest.approx(1) and axis.get_xlim() == (0.5, steps + 0.5)
    number = axis.collections[list(plots.CATEGORY_COLOURS).index("number")].get_paths()[0].vertices
    heights = {x: np.ptp(number[number[:, 0] == x, 1]) for x in (0.5, 1.5, 2.5, steps + 0.5)}
    # Where step 1 ends the area of step 2 begins: both heights are there.
    assert heights == {
        0.5: 0,
        1.5: pytest.approx(6 / 24 + 9 / 24),
        2.5: pytest.approx(6 / 24),
        steps + 0.5: pytest.approx(6 / 24),
    }


def test_every_ood_dataset_has_its_panel(tmp_path, drawn):
    plots.id_vs_ood(reference_and_students(base=3.0, teacher=2.0, mle=1.0), tmp_path / "a.png")
    check_png(tmp_path / "a.png")
    assert [axis.get_ylabel() for axis in drawn[0].axes] == [
        "loss on far, nats per token",
        "loss on farther, nats per token",
    ]
    assert [len(axis.containers) for axis in drawn[0].axes] == [3, 3]


def test_the_pareto_front_is_drawn():
    # (2, 1) is bettered by (1, 1), (3, 3) by all; (1, 1) and (4, 0) are not comparable.
    assert plots.pareto_front([(3, 3), (4, 0), (2, 1), (1, 1)]) == [(1, 1), (4, 0)]
    assert plots.pareto_front([]) == []


def test_a_model_has_one_colour_in_every_plot(tmp_path, drawn):
    plots.id_vs_ood(reference_and_students(base=3.0, teacher=2.0, mle=1.5, paper=1.0), tmp_path / "a.png")
    plots.training_curves({n: tiny_tables.training_log() for n in ("teacher", "mle", "paper")}, tmp_path / "b.png")
    points = {c.get_label(): c.lines[0].get_color() for c in drawn[0].axes[0].containers}
    curves = {line.get_label(): line.get_color() for line in drawn[1].axes[0].lines}
    assert len(set(points.values())) == 4 and curves == {name: points[name] for name in curves}
