"""Every kernel on the device against float64, in each dtype and on each backend that can run there."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from benchmarks.accelerator import loss_checks, score_checks
from tokenuq_ml.kernels.backend import Name, has_triton, use_backend

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest relative error that passes. Products in bfloat16 round logits of a few nats by some hundredths."""


@dataclass(frozen=True)
class Checked:
    """A check in a dtype on a backend."""

    check: str
    backend: str
    dtype: str
    errors: dict[str, float]
    """Relative error of each result."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether no error exceeds the tolerance; NaN does not pass."""
        return all(error <= self.tolerance for error in self.errors.values())

    def fields(self) -> dict:
        """Return plain values."""
        return {**asdict(self), "passed": self.passed}


def backends(device: torch.device) -> tuple[Name, ...]:
    """Return the backends of the kernels that a device can run; a CPU runs Triton's in its interpreter."""
    first: Name = "cpu" if device.type == "cpu" else "torch"
    runs_triton = has_triton() and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")
    return tuple(dict.fromkeys((first, "torch", *(("triton",) if runs_triton else ()))))


def checks(device: torch.device) -> Iterator[Checked]:
    """Yield the result of every check."""
    own = {f"training loss: {name}": check.errors for name, check in loss_checks.CHECKS.items()}
    named = {**own, "statistics of the training loss": loss_checks.statistics_errors, **score_checks.CHECKS}
    for backend in backends(device):
        for dtype, tolerance in TOLERANCE.items():
            for name, errors_of in named.items():
                with use_backend(backend):
                    errors = errors_of(device, dtype)
                yield Checked(name, backend, str(dtype).removeprefix("torch."), errors, tolerance)
