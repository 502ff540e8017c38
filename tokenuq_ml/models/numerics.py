"""Device, dtype and thread count of a computation, and why they were chosen."""

import platform
from contextlib import nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Numerics:
    """Where and how numbers are computed, and why so: recorded with every result."""

    device: str
    dtype: torch.dtype
    threads: int
    reason: str

    def fields(self) -> dict[str, str | int]:
        """Plain values, for metadata and checkpoint keys."""
        return {
            "device": self.device,
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "precision_reason": self.reason,
        }

    def autocast(self):
        """Mixed precision around a forward pass; does nothing in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.split(":")[0], dtype=self.dtype)


def resolve_numerics(precision: str = "auto") -> Numerics:
    """Device and dtype for `precision` (auto, float32, bfloat16).

    On a CPU `auto` goes by the processor's capability flags, never by a timing, so that
    the same machine always resolves to the same choice.
    """
    if torch.cuda.is_available():
        device, fast, reason = "cuda", torch.cuda.is_bf16_supported(), "cuda"
    elif torch.backends.mps.is_available():
        device, fast, reason = "mps", False, "mps"
    else:
        flags = {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "amx": torch.cpu._is_amx_tile_supported()}
        present = [name for name, there in flags.items() if there]
        device, fast = "cpu", bool(present)
        reason = f"{platform.machine()} flags: {', '.join(present) or 'no bfloat16 instructions'}"
    if precision == "auto":
        dtype = torch.bfloat16 if fast else torch.float32
    else:
        dtype, reason = getattr(torch, precision), "set in the study"
    return Numerics(device, dtype, torch.get_num_threads(), reason)
