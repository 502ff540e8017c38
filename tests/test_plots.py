"""Plots at their edges: one step, nothing selected, constants, no tokens, many models; and what they draw."""

import polars as pl
import pytest
import tiny_tables
from matplotlib.figure import Figure

from tokenuq_ml.entrypoints.analyse import joined_tokens
from tokenuq_ml.reports import canvas, plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were saved, to look at what is in them."""
    figures: list[Figure] = []
    save = canvas.save

    def keep(figure, path, **options):
        save(figure, path, **options)
        figures.append(figure)

    monkeypatch.setattr(canvas, "save", keep)
    return figures


@pytest.fixture
def tokens():
    return joined_tokens(*tiny_tables.losses_and_uncertainty())


def check_png(path):
    data = path.read_bytes()
    width = int.from_bytes(data[16:20], "big")
    assert data.startswith(b"\x89PNG") and len(data) < 120_000 and 800 <= width <= 1000


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


def test_empty_frames_are_drawn_empty(tmp_path, tokens):
    plots.training_curve(tiny_tables.training_log().clear(), tmp_path / "a.png")
    plots.training_curves({}, tmp_path / "b.png")
    plots.selected_categories(tiny_tables.curriculum(selected=0), tmp_path / "c.png")
    plots.selected_categories(tiny_tables.curriculum().clear(), tmp_path / "d.png")
    plots.uncertainty_over_training(tiny_tables.curriculum_uncertainty().clear(), tmp_path / "e.png")
    plots.loss_vs_bald(tokens.clear(), tmp_path / "f.png")
    plots.id_vs_ood(reference_and_students(base=1.0).clear(), tmp_path / "g.png")
    for name in "abcdefg":
        check_png(tmp_path / f"{name}.png")


@pytest.mark.parametrize("columns", [["bald"], ["loss", "bald"]])
@pytest.mark.parametrize("constant", [0.0, 0.5])
def test_constant_uncertainty(tmp_path, drawn, tokens, columns, constant):
    plots.loss_vs_bald(tokens.with_columns(pl.lit(constant).alias(name) for name in columns), tmp_path / "a.png")
    check_png(tmp_path / "a.png")
    assert drawn[0].axes[0].get_title() == "Spearman not defined"


def test_one_token(tmp_path, tokens):
    plots.loss_vs_bald(tokens.head(1), tmp_path / "a.png")
    check_png(tmp_path / "a.png")


@pytest.mark.parametrize("steps", [6, 80])
def test_shares_stack_to_one_where_anything_is_selected(tmp_path, drawn, steps):
    rows = tiny_tables.curriculum(steps).with_columns(
        n_selected=pl.when(step=1).then(0).when(category="number").then(6).otherwise(pl.col("n_selected"))
    )
    plots.selected_categories(rows, tmp_path / "a.png")
    (axis,) = drawn[0].axes
    assert len(axis.get_legend().get_texts()) == len(tiny_tables.CATEGORIES)
    if steps == 6:
        tops = {}
        for bar in axis.patches:
            x = round(bar.get_x() + bar.get_width() / 2)
            tops[x] = max(tops.get(x, 0), bar.get_y() + bar.get_height())
        assert tops == {1: 0, **{step: pytest.approx(1) for step in range(2, 7)}}
        number = [bar.get_height() for bar in axis.containers[list(plots.CATEGORY_COLOURS).index("number")]]
        assert number == [0, *[pytest.approx(6 / 24)] * 5]
    else:
        assert axis.collections[-1].get_paths()[0].vertices[:, 1].max() == pytest.approx(1)


def test_every_ood_dataset_has_its_plane(tmp_path, drawn):
    plots.id_vs_ood(reference_and_students(base=3.0, teacher=2.0, mle=1.0), tmp_path / "a.png")
    check_png(tmp_path / "a.png")
    assert [axis.get_ylabel() for axis in drawn[0].axes] == [
        "loss on far, nats a token",
        "loss on farther, nats a token",
    ]
    assert [len(axis.containers) for axis in drawn[0].axes] == [3, 3]


def test_pareto_front():
    # (2, 1) is bettered by (1, 1), (3, 3) by all; (1, 1) and (4, 0) are not comparable.
    assert plots._pareto_front([(3, 3), (4, 0), (2, 1), (1, 1)]) == [(1, 1), (4, 0)]
    assert plots._pareto_front([]) == []


def test_a_model_has_one_colour_in_every_plot(tmp_path, drawn):
    plots.id_vs_ood(reference_and_students(base=3.0, teacher=2.0, mle=1.5, paper=1.0), tmp_path / "a.png")
    plots.training_curves({n: tiny_tables.training_log() for n in ("teacher", "mle", "paper")}, tmp_path / "b.png")
    points = {c.get_label(): c.lines[0].get_color() for c in drawn[0].axes[0].containers}
    curves = {line.get_label(): line.get_color() for line in drawn[1].axes[0].lines}
    assert len(set(points.values())) == 4 and curves == {name: points[name] for name in curves}
