"""The rate of matrix products, measured on tiny shapes."""

import io
import json
import sys

from tests.support.tiny_plans import TINY
from tokenuq_ml.costs import matmul_rate
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.costs.machine import Machine


def test_the_rate_is_printed_as_the_fields_of_a_machine(monkeypatch):
    monkeypatch.setattr(matmul_rate, "SECONDS", 0.0)
    monkeypatch.setattr(matmul_rate, "ROWS", 8)
    monkeypatch.setattr(matmul_rate, "COPIES_BYTES", 1)
    out = io.StringIO()
    asked = {"layer": Architecture.from_config(TINY).matrices, "head": (32, 97), "precision": "float32"}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked)))
    monkeypatch.setattr(sys, "stdout", out)
    matmul_rate.main()
    machine = Machine(**json.loads(out.getvalue()))
    assert machine.flop_per_second > 0 and machine.itemsize == 4 and machine.batch_tokens > 0
