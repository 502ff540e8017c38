"""This machine's rate of matrix products at a model's shapes. A program of its own, since it imports torch.

    python -m tokenuq_ml.costs.matmul_rate < shapes.json

Reads `{"layer": [[in, out], ...], "head": [hidden, vocabulary], "precision": ..., "others": [...]}` from standard
input and prints one JSON object, the fields of `Machine`. The rate is also measured in the precisions `others`.

Shapes: C rows, D hidden size, V vocabulary, I features in, O features out.
"""

import json
import os
import sys
import time
from collections.abc import Sequence

import torch

from tokenuq_ml.models.numerics import resolve_numerics
from tokenuq_ml.scoring.batch_threads import batch_tokens

ROWS = 2048
"""Rows of a product, as in the benchmark that `TWO_CORES` of `efficiency.py` comes from."""
HEAD_ROWS, HEAD_OUT = 682, 49_152
"""Rows of the head product, and the most tokens of its vocabulary: a part of a large head is enough."""
COPIES_BYTES, MOST_COPIES = 64 * 2**20, 32
"""Layers are repeated up to this size, so that weights are read from memory and not from the cache; and how often at
most: those of a tiny model stay in the cache in its training too."""
SECONDS, MIN_REPEATS = 2.0, 3
"""How long products are timed, and how often at least."""


def matmul_rate(layer: list[tuple[int, int]], head: tuple[int, int], precision: str = "auto") -> dict:
    """Return the rate of products of a layer and the head, and the numerics it was measured with.

    The rate follows from the lower quartile of the seconds of at least three repeats, after one warm-up: what the
    machine can do, even if other programs use it now and then.

    Returns:
        `flop_per_second`, `batch_tokens` (padded tokens of an inference batch on this device), `device`, `precision`,
        `threads` and `precision_reason`.
    """
    numerics = resolve_numerics(precision)
    make = {"dtype": numerics.dtype, "device": numerics.device}
    bytes_of_layer = numerics.dtype.itemsize * sum(i * o for i, o in layer)
    copies = max(1, min(COPIES_BYTES // bytes_of_layer, MOST_COPIES))
    weights = [torch.randn(o, i, **make) for _ in range(copies) for i, o in layer]
    inputs = {i: torch.randn(ROWS, i, **make) for i, _ in layer}
    width, vocabulary = head
    head_VD = torch.randn(min(vocabulary, HEAD_OUT), width, **make)
    hidden_CD = torch.randn(HEAD_ROWS, width, **make)
    flop = 2 * (ROWS * sum(weight.numel() for weight in weights) + HEAD_ROWS * head_VD.numel())

    def repeat() -> float:
        started = time.perf_counter()
        for weight_OI in weights:
            inputs[weight_OI.shape[1]] @ weight_OI.T
        hidden_CD @ head_VD.T
        if numerics.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.no_grad():
        repeat()
        seconds = []
        while len(seconds) < MIN_REPEATS or sum(seconds) < SECONDS:
            seconds.append(repeat())
    quartile = sorted(seconds)[len(seconds) // 4]
    rate, tokens = flop / quartile, batch_tokens(numerics)
    return {"flop_per_second": rate, "batch_tokens": tokens, "memory": _memory(numerics.device), **numerics.fields()}


def _memory(device: str) -> int | None:
    """Return the bytes of the memory that tensors of the device are in; None if they are not known."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device == "cpu" else None


def matmul_rates(layer: list, head: tuple[int, int], precision: str, others: Sequence[str] = ()) -> dict:
    """Return `matmul_rate` in `precision`, with `others`: name -> resolved `precision`, and `flop_per_second`."""
    found, by_dtype = matmul_rate(layer, head, precision), {}
    by_dtype[found["precision"]] = {key: found[key] for key in ("precision", "flop_per_second")}
    rates = {}
    for other in others:
        resolved = str(resolve_numerics(other).dtype).removeprefix("torch.")
        if resolved not in by_dtype:
            measured = matmul_rate(layer, head, other)
            by_dtype[resolved] = {key: measured[key] for key in ("precision", "flop_per_second")}
        rates[other] = by_dtype[resolved]
    return {**found, "others": rates}


def main() -> None:
    """Read the shapes from standard input, and print the rates."""
    json.dump(matmul_rates(**json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
