"""Free memory of the C library is returned to the system."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tokenuq_ml.scoring import memory


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(sys.platform != "linux" or memory.malloc_trim() is None, reason="glibc only")
def test_pages_below_a_living_block_are_released():
    # Below the size from which glibc maps each block by itself, so that they are in the heap.
    blocks = [np.ones(64 * 1024, np.uint8) for _ in range(2000)]
    kept = blocks[::50]
    memory.release_free_memory()
    full = resident_mib()
    del blocks
    memory.release_free_memory()
    assert full - resident_mib() > 100
    assert all(block.all() for block in kept)


def test_without_glibc_nothing_happens(monkeypatch):
    def no_such_library(_):
        raise OSError

    monkeypatch.setattr(memory.ctypes, "CDLL", no_such_library)
    memory.malloc_trim.cache_clear()
    try:
        memory.release_free_memory()
        assert memory.malloc_trim() is None
    finally:
        memory.malloc_trim.cache_clear()
