"""How fast this machine multiplies matrices of a model's shapes: a program of its own, since it needs torch.

Reads `{"layer": [[in, out], ...], "head": [hidden, vocabulary], "precision": ..., "others": [...]}` from standard
input and prints one JSON object; `others` are precisions whose rates are measured too. Knows shapes; does not know what
they are of, nor what a rate is good for (`planning.py`).

    python -m tokenuq_ml.costs.matmul_rate < shapes.json

Shapes: C rows, I features in, O out.
"""

import json
import sys
import time

import torch

from tokenuq_ml.models.numerics import resolve_numerics
from tokenuq_ml.scoring.batch_threads import batch_tokens

ROWS = 2048
"""Rows of a product, as in the benchmark whose efficiencies `planning.py` uses."""
HEAD_ROWS, HEAD_OUT = 682, 49_152
"""Of a large head a part will do: its shape is as wide, and memory is not spent on the rest."""
COPIES_BYTES = 64 * 2**20
"""Layers are repeated up to this size, so that weights come from memory as a model's do."""
SECONDS, LEAST = 2.0, 3


def gemm_rate(layer: list[tuple[int, int]], head: tuple[int, int], precision: str = "auto") -> dict:
    """`flop_per_second` of the products of a layer and the head, with `device`, `precision`, `threads` and why.

    The lower quartile of the seconds of at least three turns, after one that does not count: what a machine can, though
    others use it now and then. Also `batch_tokens`, the padded tokens that
    inference has in a batch on this device.
    """
    numerics = resolve_numerics(precision)
    make = {"dtype": numerics.dtype, "device": numerics.device}
    bytes_of_layer = numerics.dtype.itemsize * sum(i * o for i, o in layer)
    copies = max(1, COPIES_BYTES // bytes_of_layer)
    weights = [torch.randn(o, i, **make) for _ in range(copies) for i, o in layer]
    inputs = {i: torch.randn(ROWS, i, **make) for i, _ in layer}
    width, vocabulary = head
    head_VD = torch.randn(min(vocabulary, HEAD_OUT), width, **make)
    hidden_CD = torch.randn(HEAD_ROWS, width, **make)
    flop = 2 * (ROWS * sum(weight.numel() for weight in weights) + HEAD_ROWS * head_VD.numel())

    def turn() -> float:
        started = time.perf_counter()
        for weight_OI in weights:
            inputs[weight_OI.shape[1]] @ weight_OI.T
        hidden_CD @ head_VD.T
        if numerics.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.no_grad():
        turn()
        seconds = []
        while len(seconds) < LEAST or sum(seconds) < SECONDS:
            seconds.append(turn())
    quick = sorted(seconds)[len(seconds) // 4]
    return {"flop_per_second": flop / quick, "batch_tokens": batch_tokens(numerics), **numerics.fields()}


def gemm_rates(layer: list, head: tuple[int, int], precision: str, others: list[str] = ()) -> dict:
    """`gemm_rate` in `precision`, with `others`: `precision` as resolved and `flop_per_second` of each other one."""
    found, by_dtype = gemm_rate(layer, head, precision), {}
    by_dtype[found["precision"]] = {key: found[key] for key in ("precision", "flop_per_second")}
    rates = {}
    for other in others:
        resolved = str(resolve_numerics(other).dtype).removeprefix("torch.")
        if resolved not in by_dtype:
            measured = gemm_rate(layer, head, other)
            by_dtype[resolved] = {key: measured[key] for key in ("precision", "flop_per_second")}
        rates[other] = by_dtype[resolved]
    return {**found, "others": rates}


def main() -> None:
    """Standard input to standard output."""
    json.dump(gemm_rates(**json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
