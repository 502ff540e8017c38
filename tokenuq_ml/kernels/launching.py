"""How a Triton kernel is launched: its device, the dtype of its sums, and how much a program reads at a time.

Imports Triton at the first launch, not before.
"""

from typing import Any

import torch
from torch import Tensor

LANES = 4096
"""Most logits that a program reads at a time."""
WARPS = 8


def launch(
    name: str, grid: tuple[int, ...], like: Tensor, arguments: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Launch a kernel of `triton_kernels.py`; nothing for no rows.

    Args:
        name: of the kernel.
        grid: programs.
        like: gives the device and, if the kernel sums, the dtype of its sums.
        arguments: tensors, numbers that change, and None.
        constants: numbers that are compiled into the kernel.
    """
    if not len(like):
        return
    import triton.language as tl

    from tokenuq_ml.kernels import triton_kernels

    kernel = getattr(triton_kernels, name)
    if "SUM" in kernel.arg_names:
        constants = constants | {"SUM": tl.float64 if like.dtype == torch.float64 else tl.float32}
    if like.stride(-1) != 1:
        raise ValueError(f"the columns of the product are {like.stride(-1)} apart; pass one whose rows are dense")
    # Triton launches on the current device, which is not always the tensors'.
    with torch.cuda.device_of(like):
        kernel[grid](*arguments, **constants, num_warps=WARPS)


def block_size(columns: int, rows: int = 1) -> int:
    """Return the logits of a row that a program reads at a time, if it reads several rows together."""
    return min(max(1, LANES // rows), power_of_two_from(columns))


def power_of_two_from(count: int) -> int:
    """Return the smallest power of two that is not below `count`."""
    return 1 << max(0, count - 1).bit_length()
