"""What the measurements ran on, and the rate that they are compared with."""

import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.accelerator.clock import synchronise
from benchmarks.accelerator.model_flops import card_of
from tokenuq_ml.kernels.backend import backend_of

PACKAGES = ("torch", "transformers", "peft", "triton", "trl", "liger_kernel", "accelerate")


@dataclass(frozen=True)
class Machine:
    """The device, its rates and the versions of what ran on it."""

    device: str
    """As its driver calls it; the processor's name on a CPU."""
    is_accelerator: bool
    python: str
    packages: dict[str, str]
    kernels: str
    """Backend of the kernels."""
    dtype: str
    product_flops: float
    """FLOP/s of one large square product in the dtype, measured here on random numbers."""
    peak_flops: float
    """FLOP/s that utilisation is a share of."""
    peak_is: str
    """Where that number is from."""
    float32_peak_flops: float | None
    """Published FLOP/s in float32; None of an unknown card."""

    def fields(self) -> dict:
        """Return plain values."""
        return asdict(self)


def machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Describe the machine; multiplies a few matrices."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    card, rate = card_of(name), product_flops(device, dtype)
    published = card.bfloat16 if card is not None and dtype == torch.bfloat16 else None
    return Machine(
        name,
        device.type != "cpu",
        platform.python_version(),
        _versions(),
        backend_of(torch.empty(0, device=device)).name,
        str(dtype).removeprefix("torch."),
        rate,
        published or rate,
        f"published dense peak of {card.name}" if published else "the product measured here",
        card.float32 if card is not None else None,
    )


def product_flops(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Return the FLOP/s of a large product: 8,192 on an accelerator, 512 on a CPU."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronise(device)
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    synchronise(device)
    return 2 * size**3 * repeats / (time.perf_counter() - started)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
