"""Reads the packed data of the report's token explorer, as the page's JavaScript does."""

import gzip
import json

import numpy as np


def unpack(data: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """Return the header and the columns, and check that every column is aligned to four bytes."""
    data = gzip.decompress(data)
    size = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + size])
    columns = {
        name: np.frombuffer(data, f"<{kind}", length, 4 + size + offset)
        for name, (kind, offset, length) in header["columns"].items()
    }
    assert all(offset % 4 == 0 for _, offset, _ in header["columns"].values()) and size % 4 == 0
    return header, columns
