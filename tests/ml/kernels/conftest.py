"""Small chunks and blocks for every test of the kernels."""

import pytest

from tests.support.kernels import V
from tokenuq_ml.kernels import head


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Products of a few rows in blocks of fewer, neither of which divides the number of tokens."""
    monkeypatch.setattr(head, "CHUNK_BYTES", 40 * 4 * V)
    monkeypatch.setattr(head, "BLOCK_BYTES", 4 * 4 * V)
