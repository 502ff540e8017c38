"""Memory that is free again but still held by the C library: given back to the system.

Knows nothing of tensors or stages.
"""

import ctypes
from collections.abc import Callable
from functools import cache


def release_free_memory() -> None:
    """Gives back the free pages of every heap of glibc; elsewhere does nothing.

    Each thread that allocates has a heap of its own, which only shrinks from its end. A small block that lives on,
    such as a column of results, keeps the pages of all the large ones below it: over many batches gigabytes.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
