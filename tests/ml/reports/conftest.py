"""A fixture that keeps the figures that plots draw."""

import pytest
from matplotlib.figure import Figure

from tokenuq_ml.reports import canvas


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures as they were saved, for tests of what is in them."""
    figures, save = [], canvas.save

    def save_and_keep(figure, path):
        save(figure, path)
        figures.append(figure)

    monkeypatch.setattr(canvas, "save", save_and_keep)
    return figures
