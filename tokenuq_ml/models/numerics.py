"""Device, dtype and thread count of a computation, and why they were chosen."""

import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Numerics:
    """Device, dtype and thread count, recorded with every result."""

    device: str
    """Device string of torch: `cpu`, `cuda`, `cuda:1`, `mps`."""
    dtype: torch.dtype
    threads: int
    reason: str
    """Why this dtype: the processor's flags, the device, or a setting of the study."""

    def fields(self) -> dict[str, str | int]:
        """Return plain values, for metadata and checkpoint keys."""
        return {
            "device": self.device,
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "precision_reason": self.reason,
        }

    def autocast(self) -> AbstractContextManager:
        """Return the mixed-precision context for a forward pass; it does nothing in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.split(":")[0], dtype=self.dtype)


def resolve_numerics(precision: str = "auto") -> Numerics:
    """Choose the device, and the dtype for `precision`.

    Args:
        precision: `auto`, `float32` or `bfloat16`. `auto` is bfloat16 where the hardware multiplies it fast. On a CPU
            that depends on the processor's flags, not on a timing, so that a machine always resolves to the same dtype.
    """
    if torch.cuda.is_available():
        device, fast, reason = "cuda", torch.cuda.is_bf16_supported(), "cuda"
    elif torch.backends.mps.is_available():
        device, fast, reason = "mps", False, "mps"
    else:
        flags = {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "amx": torch.cpu._is_amx_tile_supported()}
        present = [name for name, supported in flags.items() if supported]
        device, fast = "cpu", bool(present)
        reason = f"{platform.machine()} flags: {', '.join(present) or 'no bfloat16 instructions'}"
    if precision == "auto":
        dtype = torch.bfloat16 if fast else torch.float32
    else:
        dtype, reason = getattr(torch, precision), "set in the study"
    return Numerics(device, dtype, torch.get_num_threads(), reason)
