"""What all plots share: size, palette, the styles of models, the legend."""

import numpy as np
from PIL import Image

from tokenuq_ml.reports import canvas, html


def test_the_palette_of_a_png_keeps_the_colour_scale(tmp_path):
    figure, (axis,) = canvas.new_figure()
    axis.set_axis_off()
    axis.imshow(np.arange(256).reshape(16, 16), cmap=canvas.SEQUENTIAL)
    canvas.save(figure, tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == "P" and image.size == (canvas.WIDTH_INCHES * canvas.DPI, 4 * canvas.DPI)
        kept = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    exact = canvas.SEQUENTIAL(np.arange(256))[:, :3] * 255
    distance = np.abs(exact[:, None] - kept[None]).max(2).min(1)
    assert distance.max() < 6


def test_a_page_reserves_the_size_of_its_pictures(tmp_path):
    Image.new("P", (731, 64)).save(tmp_path / "a.png")
    assert 'width="731" height="64"' in html.picture(tmp_path / "a.png", "caption", "")


def test_the_styles_of_28_models_differ():
    names = [f"m{n}" for n in range(28)]
    styles = canvas.series_styles(["base", "teacher", *names])
    assert len({tuple(styles[name].values()) for name in names}) == 28
    # The same students in the same order have the same styles, with or without base and teacher.
    assert canvas.series_styles(names)["m9"] == styles["m9"]


def test_a_long_legend_goes_below_the_axes():
    for entries, below in ((canvas.SIDE_ENTRIES, False), (canvas.SIDE_ENTRIES + 1, True)):
        figure, (axis,) = canvas.new_figure(4 + canvas.legend_height(entries))
        for n in range(entries):
            axis.plot([0, 1], [n, n], label=f"model {n}")
        canvas.legend(figure, *axis.get_legend_handles_labels())
        figure.canvas.draw()
        box, axes = figure.legends[0].get_window_extent(), axis.get_window_extent()
        assert bool(box.y1 <= axes.y0) == below and bool(box.x0 >= axes.x1) != below
        assert box.y0 >= 0 and box.x1 <= figure.bbox.width
