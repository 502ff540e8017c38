"""Content hashes of safetensors files, independent of the layout of the file, and numbers that are not finite.

Does not import torch, so that stages that only join digests start without it.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_EXPONENTS = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "F16": ("<u2", 0x1F << 10),
    "BF16": ("<u2", 0xFF << 7),
}
"""Type -> unsigned integer of its size, and the bits of the exponent; a number whose bits are all 1 is not finite."""
_CHUNK = 2**22


def tensors_digest(path: str | Path, *more: str) -> str:
    """Return sixteen hex digits over names, dtypes, shapes and values, in the order of names, and over `more`.

    Reads a few megabytes at a time: with a memory map the complete file would count as memory of the process.
    """
    digest = hashlib.sha256("|".join(more).encode())
    for name, tensor, chunks in _tensors(path):
        dtype = _TYPES.get(tensor["dtype"], tensor["dtype"])
        digest.update(f"|{name}|torch.{dtype}|{tuple(tensor['shape'])}|".encode())
        for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()[:16]


def non_finite_values(path: str | Path) -> dict[str, int]:
    """Return how many numbers of each tensor are NaN or infinite, without the tensors that have none."""
    counts = {}
    for name, tensor, chunks in _tensors(path):
        if tensor["dtype"] in _EXPONENTS:
            dtype, ones = _EXPONENTS[tensor["dtype"]]
            counts[name] = sum(int((np.frombuffer(chunk, dtype) & ones == ones).sum()) for chunk in chunks)
    return {name: count for name, count in counts.items() if count}


def _tensors(path: str | Path) -> Iterator[tuple[str, dict[str, Any], Iterator[bytes]]]:
    """Yield name, header and bytes of each tensor, in the order of names; the bytes must be read before the next."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, tensor in sorted(header.items()):
            begin, end = tensor["data_offsets"]
            file.seek(8 + size + begin)
            yield name, tensor, (file.read(min(left, _CHUNK)) for left in range(end - begin, 0, -_CHUNK))


def joined_digest(*digests: str) -> str:
    """Return one digest of several, which depends on their order."""
    return hashlib.sha256("|".join(digests).encode()).hexdigest()[:16]
