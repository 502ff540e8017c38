"""Forward passes in IEEE float32, whatever dtype the weights have and whatever the process allows elsewhere.

Differences between passes (BALD) are smaller than what rounding to bfloat16 or tf32 puts in: mean BALD of SmolLM2's
teacher is 1.5e-4 nats, and bfloat16 adds 7e-4 to it (docs/results/precision.md). Float32 takes 1.4 to 1.8 times as long
on two cores with AVX-512 bfloat16, depending on the lengths of the texts (docs/results/benchmarks.md).

Why not something cheaper:
- Three bfloat16 products per product (bf16x3): on a CPU one float32 product costs two bfloat16 ones.
- The base model's activations, computed once: the first adapter is in the first layer, so nothing can be shared.
- One float32 pass without dropout, and bfloat16 products of the samples' differences from it. It is as good: a trial on
  three examples gave a noise of 0.4% of mean BALD, and Spearman 0.99997 with float64. It saves little where a float32
  product costs two bfloat16 ones, and much where it costs ten (CUDA); it needs a kernel per kind of layer.

Does not know what is computed from the passes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

NARROW = (torch.bfloat16, torch.float16)


@contextmanager
def float32_passes(model: nn.Module) -> Iterator[torch.dtype]:
    """Inside, `model` computes in float32: weights, products, no autocast. Yields the dtype; float64 stays float64.

    Weights in bfloat16 or float16 are widened, which is exact, and put back afterwards: while inside, a model in
    bfloat16 takes three times its memory. Autocast is switched off for the calling thread alone; other threads start
    without it.
    """
    with ExitStack() as stack:
        stack.enter_context(ieee_float32_products())
        device = next(model.parameters()).device.type
        stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(widened_weights(model))
        dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        yield torch.float64 if dtypes == {torch.float64} else torch.float32


@contextmanager
def widened_weights(model: nn.Module) -> Iterator[None]:
    """Inside, parameters and buffers in bfloat16 or float16 are float32; afterwards the very tensors are back."""
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
    """Inside, float32 matrix products are float32's own: no tf32 on CUDA, no bfloat16 in oneDNN. A global setting."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
        # One by one, not by `set_float32_matmul_precision`: its getter fails where a user has set them one by one.
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
