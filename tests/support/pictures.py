"""Stand-ins for drawing pictures, which takes half of a small study, for tests that are not about pictures."""

from pathlib import Path

ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360000000"
    "0200015e221c3b0000000049454e44ae426082"
)
"""The smallest PNG: one transparent pixel."""


def leave_out_pictures(patch) -> None:
    """Write one pixel per picture until pytest's monkeypatch `patch` is undone."""
    from tokenuq_ml.reports import canvas

    def save(figure, path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(ONE_PIXEL)

    patch.setattr(canvas, "save", save)


def draw_each_layout_once(patch) -> None:
    """Draw the first figure of each layout and copy it for the others, so that pages keep their real size."""
    from tokenuq_ml.reports import canvas

    draw, drawn = canvas.save, {}

    def save(figure, path) -> None:
        layout = (*figure.get_size_inches(), len(figure.axes))
        if layout in drawn:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(drawn[layout])
        else:
            draw(figure, path)
            drawn[layout] = Path(path).read_bytes()

    patch.setattr(canvas, "save", save)
