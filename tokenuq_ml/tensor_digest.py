"""Content hashes of safetensors files: a hash of the tensors, independent of the layout of the file.

Does not import torch, so that stages that only join digests start without it.
"""

import hashlib
import json
from pathlib import Path

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
_CHUNK = 2**22


def tensors_digest(path: str | Path, *more: str) -> str:
    """Return sixteen hex digits over names, dtypes, shapes and values, in the order of names, and over `more`.

    Reads a few megabytes at a time: with a memory map the complete file would count as memory of the process.
    """
    digest = hashlib.sha256("|".join(more).encode())
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, tensor in sorted(header.items()):
            dtype = _TYPES.get(tensor["dtype"], tensor["dtype"])
            digest.update(f"|{name}|torch.{dtype}|{tuple(tensor['shape'])}|".encode())
            begin, end = tensor["data_offsets"]
            file.seek(8 + size + begin)
            for left in range(end - begin, 0, -_CHUNK):
                digest.update(file.read(min(left, _CHUNK)))
    return digest.hexdigest()[:16]


def joined_digest(*digests: str) -> str:
    """Return one digest of several, which depends on their order."""
    return hashlib.sha256("|".join(digests).encode()).hexdigest()[:16]
