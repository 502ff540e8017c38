"""Dropout in one launch, without a mask in memory: the backward pass draws the same mask from the same seed.

The bits come from Philox4x32-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405) of a seed and an element's place, so
a mask depends on nothing else. PyTorch's own dropout stores a mask; for LoRA, which drops the input of every linear
layer, masks would take as much memory as the inputs. It is launched without a custom operator, which would take longer
on the host than the kernel takes on the device.
"""

import torch
from torch import Tensor

from tokenuq_ml.kernels.launching import launch

BLOCK = 2048
"""Counters of a program, each of which decides eight elements."""


def drop_elements(x: Tensor, seed: int, dropped: int, onto: Tensor | None = None) -> Tensor:
    """Return the elements of `x` that are kept, and 0 for the others; they are not scaled.

    Args:
        x: floating point, any shape.
        seed: decides which elements are kept; 0 to 2^63 - 1.
        dropped: an element is dropped with probability `dropped / 2**15`.
        onto: summed with the result, in place, and returned; the shape and dtype of `x`, dense.
    """
    x = x.contiguous()
    out = torch.empty_like(x) if onto is None else onto
    grid = (-(-x.numel() // (8 * BLOCK)),)
    constants = {"DROPPED": dropped, "BLOCK": BLOCK}
    launch("drop_elements", grid, x.view(-1), (out, x, onto, seed, x.numel()), constants)
    return out
