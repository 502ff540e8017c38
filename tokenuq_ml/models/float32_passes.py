"""Forward passes in IEEE float32, whatever the dtype of the weights and the settings of the process.

Differences between passes (BALD) are smaller than the rounding of bfloat16 or tf32: mean BALD of SmolLM2's teacher is
1.5e-4 nats, and bfloat16 adds 7e-4 to it (docs/results/precision.md). Float32 takes 1.4 to 1.8 times as long on two
cores with AVX-512 bfloat16, depending on the lengths of the texts (docs/results/benchmarks.md).

Cheaper methods that are not used:
- Three bfloat16 products per product (bf16x3): on a CPU one float32 product costs two bfloat16 products.
- Computing the base model's activations once: the first adapter is in the first layer, so nothing can be shared.
- One float32 pass without dropout, and bfloat16 products of the differences of the samples from it. As accurate: on
  three examples its noise was 0.4% of mean BALD, and Spearman with float64 was 0.99997. It saves little where a float32
  product costs two bfloat16 products, and much where it costs ten (CUDA), but needs a kernel per kind of layer.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from tokenuq_ml.models.placement import NARROW, check_can_widen
from tokenuq_ml.models.quantization import exact_products


@contextmanager
def float32_passes(model: nn.Module) -> Iterator[torch.dtype]:
    """Let `model` compute in float32 inside the context: weights, products, no autocast.

    Widens weights in bfloat16 or float16, which is exact, and restores them afterwards; meanwhile a model in bfloat16
    takes three times its memory. Switches autocast off for the calling thread only; other threads start without it.

    Yields:
        The dtype of the passes: float32, or float64 for a model in float64.
    """
    with ExitStack() as stack:
        stack.enter_context(ieee_float32_products())
        # Offloaded weights are on the device `meta`.
        device = next((parameter.device.type for parameter in model.parameters() if not parameter.is_meta), "cpu")
        stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(widened_weights(model))
        stack.enter_context(exact_products(model))
        dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        yield torch.float64 if dtypes == {torch.float64} else torch.float32


@contextmanager
def widened_weights(model: nn.Module) -> Iterator[None]:
    """Widen parameters and buffers in bfloat16 or float16 to float32; afterwards restore the original tensors.

    Raises:
        InputError: `check_can_widen` refuses the model.
    """
    check_can_widen(model)
    narrow: list[tuple[Tensor, Tensor]] = []
    try:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype in NARROW:
                narrow.append((tensor, tensor.data))
                tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, before in narrow:
            tensor.data = before


@contextmanager
def ieee_float32_products() -> Iterator[None]:
    """Compute float32 matrix products in float32: no tf32 on CUDA, no bfloat16 in oneDNN. A setting of the process."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
        # Not by `set_float32_matmul_precision`: its getter raises if a user has set the backends one by one.
        before = [backend.fp32_precision for backend in backends]
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, value in zip(backends, before, strict=True):
                backend.fp32_precision = value
        return
    # PyTorch before 2.9.
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(before)
