"""How the kernels run on a device: how many rows at a time, by which reductions, and whether the host may wait.

| backend | chosen for | rows per product | rows per reduction | reductions |
|---|---|---|---|---|
| `cpu` | CPUs | 64 MiB of logits | 1 MiB of logits: a core's cache | PyTorch |
| `torch` | other devices | 2,048, fewer if memory is short | as memory allows | PyTorch |
| `triton` | CUDA with Triton | 2,048, fewer if memory is short | all of the product | `fused.py`; others as `torch` |

`cpu` finds the tokens of a term by `nonzero`. The other two never ask the device for a number while a step runs
(`token_groups.py` names the exception).

A block of 1 MiB, right for a core's cache, would be one to five rows on a GPU and some 54,000 launches per step of
Llama-3.2-1B with 4,096 response tokens.

To choose another backend: `with use_backend("torch"):` in a process, or `TOKENUQ_KERNELS=torch` in the environment. Any
backend runs on tensors of any device, which is how the tests check all of them on a CPU; `triton` on a CPU needs
Triton's interpreter (`TRITON_INTERPRET=1`).

Does not import Triton. `launching.py` does, at the first launch.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenuq_ml.errors import InputError

Name = Literal["cpu", "torch", "triton"]
VARIABLE = "TOKENUQ_KERNELS"
MOST_ROWS = 2048
"""Rows of a product: enough for a GPU's full product rate, and 0.5 GiB of bfloat16 logits of Llama 3's vocabulary."""
PRODUCT_SHARE, REDUCTION_SHARE = 8, 4
"""The products of a chunk take at most 1/8 of the device's free memory, the temporary tensors of a reduction 1/4."""
MOST_REDUCTION_BYTES = 4 * 2**30
KEPT_BYTES = 2**30
"""A product of all tokens is kept in memory up to this size, or up to the share of a chunk if that is smaller."""
TEMPORARIES = 3
"""Tensors of a block's size that PyTorch's reductions hold per matrix of logits."""
ASSUMED_FREE_BYTES = 16 * 2**30
"""Of a device that does not say how much of its memory is free."""


@dataclass(frozen=True)
class Backend:
    """How the kernels run on a device."""

    name: Name

    @property
    def is_accelerator(self) -> bool:
        """Whether rows follow the device's memory, and the host does not wait for the device."""
        return self.name != "cpu"

    @property
    def is_fused(self) -> bool:
        """Whether the reductions of `fused.py` are used."""
        return self.name == "triton"

    def rows_per_product(self, device: torch.device, row_bytes: int) -> int:
        """Return the rows of a product, given the bytes of a row over all products of the chunk.

        A power of two, so that small changes of free memory do not change the shapes, and with them the rounding.
        """
        return _power_of_two(min(MOST_ROWS, free_bytes(device) // PRODUCT_SHARE // row_bytes))

    def rows_per_reduction(self, device: torch.device, row_bytes: int) -> int:
        """Return the rows that PyTorch reduces together, given the bytes of a row of float32 logits."""
        budget = min(MOST_REDUCTION_BYTES, free_bytes(device) // REDUCTION_SHARE)
        return _power_of_two(min(MOST_ROWS, budget // (TEMPORARIES * row_bytes)))

    def keeps(self, device: torch.device, total_bytes: int) -> bool:
        """Return whether a product of all rows may stay in memory, so that it is not computed a second time."""
        return self.is_accelerator and total_bytes <= min(KEPT_BYTES, free_bytes(device) // PRODUCT_SHARE)


_chosen: Name | None = None
"""What `use_backend` has chosen, for all threads."""


def backend_of(like: Tensor) -> Backend:
    """Return the backend for a tensor's device, or the one that was chosen for the process.

    Raises:
        InputError: `TOKENUQ_KERNELS` names no backend, or one that cannot run.
    """
    name = _chosen or os.environ.get(VARIABLE) or default_name(like.device)
    return _backend(name, like.device.type)


def default_name(device: torch.device) -> Name:
    """Return the backend that a device gets unless another one is chosen."""
    if device.type == "cpu":
        return "cpu"
    return "triton" if device.type == "cuda" and has_triton() else "torch"


@contextmanager
def use_backend(name: Name) -> Iterator[None]:
    """Use a backend inside the context, for tensors of any device, in all threads of the process.

    Args:
        name: `cpu`, `torch` or `triton`.

    Raises:
        InputError: there is no such backend.
    """
    global _chosen
    if name not in get_args(Name):
        raise InputError(_unknown(name))
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


@cache
def has_triton() -> bool:
    """Return whether Triton is installed; PyTorch's builds for CUDA bring it."""
    return importlib.util.find_spec("triton") is not None


@cache
def _backend(name: str, device_type: str) -> Backend:
    if name == "triton":
        if not has_triton():
            raise InputError(
                f"{VARIABLE}=triton needs Triton, which is not installed; install tokenuq[gpu], or set {VARIABLE}=torch"
            )
        if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise InputError(
                f"{VARIABLE}=triton needs a GPU, and the tensors are on the CPU; set TRITON_INTERPRET=1 to run the "
                f"kernels in Triton's interpreter, or {VARIABLE}=torch"
            )
        return Backend("triton")
    if name == "torch":
        return Backend("torch")
    if name == "cpu":
        return Backend("cpu")
    raise InputError(_unknown(name))


def _unknown(name: str) -> str:
    return f"{VARIABLE}: no backend is called {name!r}; known are {', '.join(get_args(Name))}"


def free_bytes(device: torch.device) -> int:
    """Return the memory that a kernel may allocate on a device; does not wait for the device."""
    if device.type == "cuda" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(device)
        # What PyTorch has reserved and does not use counts too.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps" and torch.backends.mps.is_available():
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return ASSUMED_FREE_BYTES


def _power_of_two(rows: int) -> int:
    """Return the largest power of two that is not above `rows`, at least 1."""
    return 1 << (max(1, rows).bit_length() - 1)
