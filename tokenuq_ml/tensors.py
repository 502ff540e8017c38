"""Content hashes of safetensors files.

Hashes what the tensors are, not how the file lays them out; knows nothing of models.
"""

import hashlib
from pathlib import Path


def tensors_digest(path: str | Path, *more: str) -> str:
    """Sixteen hex digits over names, dtypes, shapes and values, in the order of names, and over `more`."""
    # Here, so that stages which only join digests start without torch.
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256("|".join(more).encode())
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name).contiguous()
            digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            # Viewed as bytes, since numpy has no bfloat16.
            digest.update(tensor.flatten().view(dtype=torch.uint8).numpy())
    return digest.hexdigest()[:16]


def joined_digest(*digests: str) -> str:
    """One digest of several, in order."""
    return hashlib.sha256("|".join(digests).encode()).hexdigest()[:16]
