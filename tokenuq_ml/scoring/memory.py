"""Release memory that is free but still held by the C library."""

import ctypes
from collections.abc import Callable
from functools import cache


def release_free_memory() -> None:
    """Return the free pages of every heap of glibc to the system; without glibc, do nothing.

    Each thread that allocates has its own heap, which shrinks only from its end. A small block that lives on, such as a
    column of results, keeps the pages of all large blocks below it: over many batches, gigabytes.
    """
    trim = malloc_trim()
    if trim is not None:
        trim(0)


@cache
def malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`, or None."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
