"""What all pictures share: size, palette, looks."""

import numpy as np
from PIL import Image

from tokenuq_ml.reports import canvas


def test_pictures_have_a_palette_unless_their_colours_are_a_scale(tmp_path):
    sizes = {}
    for continuous in (False, True):
        figure, (axis,) = canvas.new_figure()
        axis.imshow(np.arange(10_000).reshape(100, 100), cmap="viridis")
        canvas.save(figure, tmp_path / "new" / f"{continuous}.png", continuous=continuous)
        with Image.open(tmp_path / "new" / f"{continuous}.png") as image:
            sizes[continuous] = image.size
            assert image.mode == ("RGB" if continuous else "P")
    assert sizes[True] == sizes[False] == (canvas.WIDTH_INCHES * canvas.DPI, 4 * canvas.DPI)


def test_forty_models_look_different():
    names = [f"m{n}" for n in range(28)]
    looks = canvas.looks(["base", "teacher", *names])
    assert len({tuple(looks[name].values()) for name in names}) == 28
    # The same students in the same order look the same, whether or not the references are among them.
    assert canvas.looks(names)["m9"] == looks["m9"]


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
