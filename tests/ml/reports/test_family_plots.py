"""The comparison plots, with edge cases."""

import polars as pl
import pytest
from matplotlib.colors import to_hex

from tests.support import tiny_tables
from tokenuq_ml.evaluation.selection_overlap import selection_overlap
from tokenuq_ml.reports import family_plots


def points(*rows: tuple[str, float, float]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "curve": curve,
                "quantile": quantile,
                "dataset": dataset,
                "split": split,
                "value": value,
                "ci_low": value - 0.1,
                "ci_high": value + 0.2,
            }
            for curve, quantile, value in rows
            for dataset, split in (("toy", "test"), ("far", "ood"))
        ]
    )


def test_quantile_curves_have_one_line_per_curve_one_panel_per_dataset_and_the_baseline(tmp_path, drawn):
    curves = points(("a", 0.5, 2.0), ("a", 0.25, 1.0), ("b", 0.25, 3.0), ("b", 0.75, 4.0))
    baseline = points(("mle", 1.0, 2.5)).drop("curve", "quantile")
    family_plots.quantile_curves(curves, baseline, "mle", tmp_path / "a.png")
    assert [axis.get_title() for axis in drawn[0].axes] == ["toy (test)", "far (ood)"]
    for axis in drawn[0].axes:
        lines = {container.get_label(): container.lines[0] for container in axis.containers}
        assert list(lines["a"].get_ydata()) == [1.0, 2.0]
        assert lines["a"].get_xdata() == pytest.approx([0.25, 0.5], abs=0.01)
        assert list(lines["b"].get_ydata()) == [3.0, 4.0]
        dashed = next(line for line in axis.lines if line.get_label() == "mle")
        assert set(dashed.get_ydata()) == {2.5} and dashed.get_linestyle() == "--"
        whiskers = axis.containers[0].lines[2][0].get_segments()
        assert [list(ends[:, 1]) for ends in whiskers] == [pytest.approx([0.9, 1.2]), pytest.approx([1.9, 2.2])]


def test_many_quantile_curves_are_all_drawn(tmp_path, drawn):
    many = points(*((f"set{n}", quantile, n + quantile) for n in range(20) for quantile in (0.1, 0.5)))
    family_plots.quantile_curves(many, points(("mle", 1.0, 2.5)), "mle", tmp_path / "a.png")
    for axis in drawn[0].axes:
        lines = {container.get_label(): list(container.lines[0].get_ydata()) for container in axis.containers}
        assert lines == {f"set{n}": [n + 0.1, n + 0.5] for n in range(20)}


@pytest.fixture
def overlap() -> pl.DataFrame:
    frames = {name: tiny_tables.selections(share, 60, 20, draw) for name, share, draw in (("a", 0.3, 0), ("b", 0.6, 1))}
    frames["none"] = frames["a"].with_columns(selected=pl.lit(False))
    return selection_overlap({name: frame.lazy() for name, frame in frames.items()})


def test_the_matrix_is_symmetric_and_has_the_means_over_steps(tmp_path, drawn, overlap):
    family_plots.overlap_matrix(overlap, ["a", "b", "none"], tmp_path / "a.png")
    matrix = drawn[0].axes[0].images[0].get_array()
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(overlap.filter(a="a", b="b")["jaccard"].mean())
    assert 0 < matrix[0, 1] < 1 and matrix[0, 2] == 0
    assert [matrix[i, i] for i in range(3)] == [1, 1, 1]


def test_a_pair_without_an_index_is_grey(tmp_path, drawn, overlap):
    undefined = overlap.with_columns(jaccard=pl.lit(None, pl.Float64))
    family_plots.overlap_matrix(undefined, ["a", "b", "none"], tmp_path / "a.png")
    (axis, _) = drawn[0].axes
    assert axis.images[0].get_array().mask[0, 1] and to_hex(axis.get_facecolor()) == "#dddddd"


def test_overlap_curves_are_ordered_from_high_to_low(tmp_path, drawn, overlap):
    family_plots.overlap_over_steps(overlap, "b", tmp_path / "a.png")
    (axis,) = drawn[0].axes
    assert [line.get_label() for line in axis.lines] == ["a", "none"]
    # 60 steps, a window of 3: a point in the middle is the mean of itself and its neighbours.
    exact = overlap.filter(a="a", b="b")["jaccard"]
    assert axis.lines[0].get_ydata()[30] == pytest.approx(exact[29:32].mean())
    assert "running mean over 3 steps" in axis.get_xlabel()


def test_short_trainings_are_not_smoothed(tmp_path, drawn, overlap):
    few = overlap.filter(pl.col("step") <= 10)
    family_plots.overlap_over_steps(few, "a", tmp_path / "a.png")
    line = next(line for line in drawn[0].axes[0].lines if line.get_label() == "b")
    assert list(line.get_ydata()) == few.filter(a="a", b="b")["jaccard"].to_list()


def test_many_selections_are_drawn(tmp_path):
    frames = {f"selection_{n}": tiny_tables.selections(0.3, 6, 20, n).lazy() for n in range(24)}
    found = selection_overlap(frames)
    family_plots.overlap_matrix(found, list(frames), tmp_path / "a.png")
    family_plots.overlap_over_steps(found, "selection_3", tmp_path / "b.png")
    for name in "ab":
        data = (tmp_path / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) < 150_000
