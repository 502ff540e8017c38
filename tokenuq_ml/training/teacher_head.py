"""The output layer of a teacher that its students do not share, stored once next to its cached states.

Students that are trained without an adapter train their output layer, and so did their teacher.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.kernels.head import Head

HEAD_FILE = "head.safetensors"


def write_head(folder: str | Path, head: Head) -> None:
    """Write the head's weights in their dtype, with its factor and soft cap."""
    tensors = {"weight_VD": head.weight_VD} | ({} if head.bias_V is None else {"bias_V": head.bias_V})
    numbers = {"scale": repr(head.scale)} | ({} if head.softcap is None else {"softcap": repr(head.softcap)})
    with atomic_write(Path(folder, HEAD_FILE)) as file:
        file.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, numbers))


def read_head(folder: str | Path, device: str) -> Head | None:
    """Return the head that is stored in a folder; None if there is none, because students share the teacher's."""
    path = Path(folder, HEAD_FILE)
    if not path.exists():
        return None
    with safe_open(path, framework="pt", device=device) as file:
        tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}
        numbers = {name: float(text) for name, text in file.metadata().items()}
    return Head(**tensors, **numbers)


def head_bytes(head: Head) -> int:
    """Return the bytes of a stored head, without its header."""
    tensors = (head.weight_VD,) if head.bias_V is None else (head.weight_VD, head.bias_V)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
