"""Free memory that goes back to the system."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tokenuq_ml.scoring import memory


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(sys.platform != "linux" or memory.malloc_trim() is None, reason="glibc only")
def test_pages_under_a_block_that_lives_on_are_given_back():
    # Below the size from which glibc maps blocks one by one, so that they lie in the heap.
    blocks = [np.ones(64 * 1024, np.uint8) for _ in range(2000)]
    kept = blocks[::50]
    memory.release_free_memory()
    full = resident_mib()
    del blocks
    memory.release_free_memory()
    assert full - resident_mib() > 100
    assert all(block.all() for block in kept)


def test_elsewhere_it_does_nothing(monkeypatch):
    def no_such_library(_):
        raise OSError

    monkeypatch.setattr(memory.ctypes, "CDLL", no_such_library)
    memory.malloc_trim.cache_clear()
    try:
        memory.release_free_memory()
        assert memory.malloc_trim() is None
    finally:
        memory.malloc_trim.cache_clear()
